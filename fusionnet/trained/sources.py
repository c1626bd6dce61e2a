"""Frames in memory, lazy ones and files, as the checks see a table."""

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.config.table import CsvConfig, DataConfig
from embedcache.errors import TableError
from embedcache.table.reader import frame_source, open_source
from embedcache.table.source import Source
from fusionnet.trained.run import TrainedRun


def source_of(
    run: TrainedRun, frame: Any, named: str = "the path", csv: CsvConfig | None = None
) -> Source:
    """Return a frame, or the file at a path, as the checks see a table; a Source as it is.

    `named` says in messages what gave the path, `csv` how a text file is written (unset: as the
    run's config says).
    """
    if isinstance(frame, Source):
        return frame
    if isinstance(frame, str | Path):
        return open_source(frame, run.data.model_copy(update={"csv": csv or run.data.csv}), named)
    return _frame_source(frame, run.data)


def _frame_source(frame: Any, data: DataConfig) -> Source:
    """Return a frame in memory, or a lazy one, as the checks see a table."""
    twice: tuple[str, ...] = ()
    if isinstance(frame, pl.LazyFrame):
        lazy = frame
    elif isinstance(frame, pl.DataFrame):
        lazy = frame.lazy()
    elif is_pandas(frame):
        twice = tuple(name for name, count in Counter(map(str, frame.columns)).items() if count > 1)
        lazy = _from_pandas(frame, data).lazy()
    else:
        raise TableError(
            f"expected a polars or pandas frame or a path, found {type(frame).__name__}"
        )
    try:
        return frame_source(lazy, data, twice)
    except (pl.exceptions.PolarsError, OSError) as error:  # of a file that it scans
        raise TableError(f"the lazy frame cannot be evaluated: {error}") from None


def is_pandas(frame: Any) -> bool:
    """Whether something is a pandas frame; pandas is not imported for it."""
    return hasattr(frame, "iloc") and hasattr(frame, "columns")


def _from_pandas(frame: Any, features: DataConfig) -> pl.DataFrame:
    """Return the columns that matter, with missing values as nulls, and the others by name alone.

    `polars.from_pandas` would need pyarrow, and would stumble over objects in columns that nobody
    reads.
    """
    needed = {
        column.column
        for columns in (features.strings, features.numeric, features.categories)
        for column in columns
    }
    nothing = pl.Series([None], dtype=pl.Null).new_from_index(0, len(frame))
    read: dict[str, pl.Series] = {}  # of columns with one name the first; the check reports them
    for number, name in enumerate(map(str, frame.columns)):
        series = (
            polars_series(name, frame.iloc[:, number]) if name in needed else nothing.alias(name)
        )
        read.setdefault(name, series)
    return pl.DataFrame(list(read.values()))


def polars_series(name: str, column: Any) -> pl.Series:
    """Return a pandas column with missing values as nulls; raises TableError if it mixes types."""
    values = column.to_numpy()
    try:
        if values.dtype.kind in "biuf":
            return pl.Series(name, values, nan_to_null=True)
        objects = [
            None if gone else value
            for value, gone in zip(column.to_list(), column.isna().to_list(), strict=True)
        ]
        whole = [value for value in objects if type(value) is int]
        if any(abs(value) >= 1 << 63 for value in whole):  # integers of any size, for polars none
            return pl.Series(name, objects, dtype=pl.Float64, strict=True)
        return pl.Series(name, objects, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        why = str(error).splitlines()[0]
        raise TableError(
            f"column '{name}' of the frame mixes types: {why:.200}; give it one, or drop it"
        ) from None
