"""Predict, and optionally reward, the rows of a table in raw units; input columns are kept,
predictions added as predicted_<column>.
"""

import argparse
import shutil
import time
from pathlib import Path

import polars as pl

from embedcache.errors import TableError, UserError
from embedcache.files import atomic_write
from fusionnet import RewardModel


def main() -> None:
    """Check the whole input, predict it batch by batch, and publish the output by rename."""
    arguments = parse_arguments()
    started = time.perf_counter()
    model = RewardModel.load(
        arguments.run, arguments.device, arguments.checkpoint, arguments.precision
    )
    added = [f"predicted_{task.column}" for task in model.run.tasks] + ["reward"] * arguments.reward
    means = write_scores(model, arguments.input, arguments.output, added, arguments.reward)
    num_rows = means.pop("rows")
    seconds = time.perf_counter() - started
    print(
        f"{arguments.output}: {num_rows:,} rows in {seconds:.1f} s; means: "
        + ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
    )
    for column, new in model.run.memory.vectors.items():
        if new:
            print(
                f"{len(new):,} distinct '{column}' strings were in no training row; their"
                " predictions extrapolate"
            )
    for text, parts in list(model.run.memory.unknown.items())[:10]:
        print(f"the tokenizer does not know {', '.join(parts)} in {text:.120}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="rows to predict, .parquet or .csv",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="the table to write, .parquet or .csv",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument(
        "--reward",
        action="store_true",
        help="add the column reward (the run's config says what it is)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 rounds to about three digits; faster only where the device has it in hardware",
    )
    arguments = parser.parse_args()
    if arguments.output.suffix.lower() not in (".parquet", ".csv"):
        parser.error(f"{arguments.output} ends in neither .parquet nor .csv")
    return arguments


def write_scores(
    model: RewardModel, source: Path, target: Path, added: list[str], reward: bool
) -> dict[str, float]:
    """Write the source's columns and the added ones, through parts on disk so that memory does not
    grow; return the added columns' means and `rows`.
    """
    as_csv = target.suffix.lower() == ".csv"
    batches = model.batches(
        source, reward, keep=_source_rows(source, added, as_text=as_csv), progress=True
    )
    parts = target.with_name(target.name + ".parts")
    try:
        first = next(batches)  # the whole input is checked before anything is written
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        first.write_parquet(parts / "00000000.parquet")
        for number, batch in enumerate(batches, start=1):
            batch.write_parquet(parts / f"{number:08d}.parquet")
        rows = pl.scan_parquet(sorted(parts.iterdir()), glob=False)
        with atomic_write(target) as partial:
            if as_csv:
                rows.sink_csv(partial)
            else:
                rows.sink_parquet(partial)
        return (
            rows.select(pl.len().alias("rows"), *(pl.col(name).mean() for name in added))
            .collect(engine="streaming")
            .row(0, named=True)
        )
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from None
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _source_rows(source: Path, added: list[str], as_text: bool) -> pl.LazyFrame | None:
    """Return the input as it is written; cells of a CSV stay text if they are to be a CSV again."""
    if not source.is_file() or source.suffix.lower() not in (".parquet", ".csv"):
        return None  # the check that follows says what is wrong
    try:
        if source.suffix.lower() == ".csv":
            rows = pl.scan_csv(
                source, infer_schema=not as_text, infer_schema_length=None, glob=False
            )
        else:
            rows = pl.scan_parquet(source, glob=False, hive_partitioning=False)
        clash = sorted(set(rows.collect_schema().names()) & set(added))
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    if clash:
        raise TableError(
            f"{source} already has the columns {', '.join(clash)}; rename or drop them"
        )
    return rows
