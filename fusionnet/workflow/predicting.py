"""Predict the rows of a table file, batch by batch, into another file, published by rename."""

import shutil
from pathlib import Path

import polars as pl

from embedcache.errors import TableError, UserError
from embedcache.files import atomic_write
from fusionnet.trained.reward import RewardModel


def write_scores(
    model: RewardModel, source: Path, target: Path, added: list[str], reward: bool
) -> dict[str, float | int]:
    """Write the source's columns and the added ones; return the added columns' means and `rows`.

    Rows go through files on disk, so that memory does not grow with them.
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
