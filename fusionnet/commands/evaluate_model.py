"""Evaluate a trained run on rows that it never saw: metrics beside goals and the oracle, tables by
group, plots, an HTML report.
"""

import argparse
import json
from pathlib import Path

from embedcache.cache.reader import Cache, open_cache
from embedcache.config import SPLITS
from embedcache.errors import MissingCacheError
from embedcache.files import write_atomically
from fusionnet.evaluation.evaluate import evaluate_run, output_name, summary
from fusionnet.evaluation.report import write_report
from fusionnet.trained.run import TrainedRun, load_run


def main() -> None:
    """Evaluate, write metrics.json, plots and report.html into the run folder, and print a
    summary.
    """
    arguments = parse_arguments()
    run = load_run(arguments.run, arguments.checkpoint, arguments.device)
    evaluation = evaluate_run(
        run, cache_of(run, arguments.cache), arguments.split, arguments.oracle
    )
    metrics = json.dumps(evaluation.to_json(run), indent=1, allow_nan=False)
    write_atomically(
        run.folder / f"{output_name('metrics', arguments.split)}.json", f"{metrics}\n".encode()
    )
    page = write_report(run, evaluation)
    print(metrics if arguments.json else f"{summary(run, evaluation)}\nreport: {page}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="others than test are written beside it: metrics_validation.json, ...",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="PATH",
        help="where the run's cache lies now (unset: where it lay in training)",
    )
    parser.add_argument(
        "--oracle",
        type=Path,
        metavar="FILE",
        help=(
            "noise-free outcomes of the table's rows, as jobs.make_cohort --noise-free writes them"
        ),
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--json", action="store_true", help="print metrics.json instead of the summary"
    )
    return parser.parse_args()


def cache_of(run: TrainedRun, path: Path | None) -> Cache:
    """Return the run's cache; evaluation checks that it is the one that the run was trained on."""
    try:
        return open_cache(path or run.config["cache"]["path"])
    except MissingCacheError as error:
        hint = (
            ""
            if path
            else (
                "; the run's config names it relative to where training was started: go there, or"
                " say where it lies now with --cache PATH"
            )
        )
        raise MissingCacheError(f"{error}{hint}") from None
