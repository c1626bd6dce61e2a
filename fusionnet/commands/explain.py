"""Tell what a trained run reads: how important columns are, and which atoms of its strings.

Columns are shuffled across rows that the run never saw (permutation importance), strings attributed
to their atoms (integrated gradients over tokens). It writes importance.json, pictures and a page.
"""

import argparse

from embedcache.cache.manifest import read_root
from fusionnet.commands.command import importing, run_job
from fusionnet.commands.evaluated import add_evaluated_rows
from fusionnet.trained.folder import find_checkpoint
from fusionnet.workflow.outputs import check_explanation


def main() -> None:
    """Explain the run that the arguments name, and print what was found."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, arguments.checkpoint)
    hint = "name another folder with --out DIR"
    check_explanation(arguments.out or arguments.run, arguments.split, hint)
    if arguments.cache is not None:
        read_root(arguments.cache)
    with importing():
        from fusionnet.workflow.explaining import explain_folder

    print(
        explain_folder(
            arguments.run,
            arguments.checkpoint,
            arguments.split,
            arguments.out,
            arguments.cache,
            arguments.device,
            arguments.table,
            arguments.strings,
            arguments.repeats,
            arguments.rows,
        )
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_evaluated_rows(
        parser,
        "numbers, pictures and page",
        "importance_validation.json",
        "rows of a labelled table instead, as `evaluate --table` takes them",
    )
    parser.add_argument(
        "--strings",
        type=_count,
        default=6,
        metavar="N",
        help="strings per column to draw, those of the most rows (default 6; 0: none)",
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        default=5,
        metavar="N",
        help="how often each column is shuffled (default 5)",
    )
    parser.add_argument(
        "--rows",
        type=_positive,
        metavar="N",
        help="the most rows that columns are shuffled over (unset: 10,000; 2,000 with boosting)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser.parse_args()


def _count(text: str) -> int:
    """Return a number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more (got {text!r:.80})")
    return int(text)


def _positive(text: str) -> int:
    """Return a number of 1 or more."""
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("expected a whole number, 1 or more (got 0)")
    return int(text)


if __name__ == "__main__":
    run_job(main)
