"""Predict, and optionally reward, the rows of a table in raw units; input columns are kept, predictions added as predicted_<column>."""

import argparse
import time
from pathlib import Path

import polars as pl

from embedcache.errors import TableError
from fusionnet import RewardModel
from jobs.command import run_job


def main() -> None:
    """Check the whole input, predict it, and write the output by rename."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE", help="rows to predict, .parquet or .csv")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the table to write, .parquet or .csv")
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument("--reward", action="store_true", help="add the column reward (the run's config says what it is)")
    arguments = parser.parse_args()
    if arguments.output.suffix not in (".parquet", ".csv"):
        parser.error(f"{arguments.output} ends in neither .parquet nor .csv")
    started = time.perf_counter()
    model = RewardModel.load(arguments.run, moment=arguments.checkpoint)
    predictions = model.score(arguments.input) if arguments.reward else model.predict(arguments.input)
    rows = pl.read_csv(arguments.input) if arguments.input.suffix == ".csv" else pl.read_parquet(arguments.input)
    clash = sorted(set(rows.columns) & set(predictions.columns))
    if clash:
        raise TableError(f"{arguments.input} already has the columns {', '.join(clash)}; rename or drop them")
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    both = rows.hstack(predictions)
    both.write_csv(partial) if arguments.output.suffix == ".csv" else both.write_parquet(partial)
    partial.replace(arguments.output)
    means = ", ".join(f"{name} {value:.4g}" for name, value in predictions.mean().row(0, named=True).items())
    print(f"{arguments.output}: {len(both):,} rows in {time.perf_counter() - started:.1f} s; means: {means}")


if __name__ == "__main__":
    run_job(main)
