"""Evaluate a trained run on rows that it never saw: metrics beside goals and the oracle, tables by group, plots, an HTML report."""

import argparse
import json
from pathlib import Path

from embedcache.splits import SPLITS
from embedcache.store import open_cache
from fusionnet.evaluate import evaluate_run, summary
from fusionnet.report import write_report
from fusionnet.run import load_run
from fusionnet.train.runlog import write_json
from jobs.command import run_job


def main() -> None:
    """Evaluate, write metrics.json, plots and report.html into the run folder, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument("--cache", type=Path, metavar="PATH", help="where the run's cache lies now (unset: where it lay in training)")
    parser.add_argument("--oracle", type=Path, metavar="FILE", help="noise-free outcomes of the table's rows, as jobs.make_cohort --noise-free writes them")
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of the summary")
    arguments = parser.parse_args()
    run = load_run(arguments.run, arguments.checkpoint)
    cache = open_cache(arguments.cache or run.config["cache"]["path"])
    evaluation = evaluate_run(run, cache, arguments.split, arguments.oracle)
    metrics = evaluation.to_json(run)
    write_json(run.folder / "metrics.json", metrics)
    page = write_report(run, evaluation, metrics["about"])
    print(json.dumps(metrics, indent=1) if arguments.json else f"{summary(run, evaluation)}\nreport: {page}")


if __name__ == "__main__":
    run_job(main)
