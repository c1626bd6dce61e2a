"""Evaluate a trained run on rows that it never saw.

It writes metrics beside goals and the oracle, tables by group, plots and an HTML report, and
compares the run with another one where asked to.
"""

import argparse
from pathlib import Path

from embedcache.cache.manifest import read_root
from fusionnet.commands.command import importing, run_job
from fusionnet.commands.evaluated import add_evaluated_rows
from fusionnet.trained.folder import find_checkpoint
from fusionnet.workflow.outputs import check_evaluation


def main() -> None:
    """Evaluate the run that the arguments name, and print a summary."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, arguments.checkpoint)
    hint = "name another folder with --out DIR"
    if arguments.against is not None:
        find_checkpoint(arguments.against, arguments.checkpoint)
    target = arguments.out or arguments.run
    check_evaluation(target, arguments.split, hint, arguments.against)
    if arguments.cache is not None:
        read_root(arguments.cache)
    with importing():
        from fusionnet.workflow.evaluating import evaluate_folder

    print(
        evaluate_folder(
            arguments.run,
            arguments.checkpoint,
            arguments.split,
            arguments.out,
            arguments.cache,
            arguments.oracle,
            arguments.device,
            arguments.json,
            not arguments.no_baselines,
            arguments.table,
            arguments.against,
            not arguments.no_live,
        )
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_evaluated_rows(
        parser,
        "metrics, plots and report",
        "metrics_validation.json",
        "evaluate the rows of a labelled table instead: of the run's own (its splits are those"
        " of training), or of another (all its rows but those that trained the run)",
    )
    parser.add_argument(
        "--oracle",
        type=Path,
        metavar="FILE",
        help=(
            "noise-free outcomes of the table's rows, as jobs.make_cohort --noise-free writes them"
        ),
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help=(
            "the folder of another run: how far the metrics of both differ on the same rows, and"
            " whether other rows would say so (against_<name>.json, and in the report)"
        ),
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="leave out what the model is to beat: means and boosting, fitted in seconds",
    )
    parser.add_argument(
        "--no-live",
        action="store_true",
        help="leave the trained model out of report.html, which otherwise holds its weights",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print metrics.json, or that of --against, instead of the summary",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
