"""Predict the rows of a table file, batch by batch, into another file, published by rename."""

from itertools import chain
from pathlib import Path

import polars as pl

from embedcache.errors import OutputError, TableError
from embedcache.files import atomic_write
from embedcache.system import explained
from fusionnet.trained.reward import RewardModel
from fusionnet.workflow.table_file import table_file, unfit_for_csv


def write_scores(
    model: RewardModel, source: Path, target: Path, added: list[str], reward: bool
) -> dict[str, float | int]:
    """Write the source's columns and the added ones; return the added columns' means and `rows`.

    Memory does not grow with the rows. Nothing is written before the whole input is checked, and
    `target` is what it was until the last row is in the new file.
    """
    as_csv = target.suffix.lower() == ".csv"
    batches = model.batches(source, reward, keep=_source_rows(source, added, as_csv), progress=True)
    first = next(batches)  # the whole input is checked before anything is written
    sums, num_rows = dict.fromkeys(added, 0.0), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(target) as partial,
            table_file(partial, first.schema, as_csv) as write,
        ):
            for batch in chain([first], batches):
                write(batch)
                num_rows += len(batch)
                for name in added:
                    sums[name] += float(batch[name].cast(pl.Float64).sum())
    except OSError as error:
        raise OutputError(explained(error)) from None
    except pl.exceptions.PolarsError as error:
        raise OutputError(f"{target} cannot be written: {error}") from None
    return {"rows": num_rows, **{name: total / num_rows for name, total in sums.items()}}


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
        schema = rows.collect_schema()
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    clash = sorted(set(schema.names()) & set(added))
    if clash:
        raise TableError(
            f"{source} already has the columns {', '.join(clash)}; rename or drop them"
        )
    unfit = unfit_for_csv(schema) if as_text else []
    if unfit:
        raise TableError(
            f"{source} has columns that a CSV file cannot hold: {', '.join(unfit)}; write Parquet"
            " (--output NAME.parquet), or drop them from the input"
        )
    return rows
