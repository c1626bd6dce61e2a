"""Raw frames to model inputs, by the same rules and checks that built the cache."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int

from embedcache.config.split import SplitConfig
from embedcache.config.table import CategoryColumn, DataConfig
from embedcache.errors import TableError
from embedcache.table.read import read_source
from embedcache.table.reader import Source, open_source
from embedcache.table.table import Table
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import TrainedRun

_NO_SPLIT = SplitConfig(strategy="random")
# before the names of columns that only come along, so that none can be taken for a canonical one
_KEPT = "kept:"


def open_frame(run: TrainedRun, frame: Any) -> Table:
    """Return a polars or pandas frame, a lazy frame, or a file, checked against the run's columns.

    Raises one TableError with all violations. Labels, groups and weights are not needed and not
    read. In a pandas frame NaN is a missing value, in all others it is a violation.
    """
    features = _features_only(run)
    source = open_source(frame) if isinstance(frame, str | Path) else _frame_source(frame, features)
    return read_source(source, features, (), _NO_SPLIT, reach=run.scaling.reach())


def frame_inputs(
    run: TrainedRun, table: Table, block_rows: int, keep: pl.LazyFrame | None = None
) -> Iterator[tuple[RowInputs, pl.DataFrame]]:
    """Yield the table's rows as inputs on the CPU, block by block, with the same rows of `keep`.

    Features are in raw units; `string_id[:, c]` indexes the sorted distinct strings of column c.
    `keep` is a frame of equal length.
    """
    kept = [] if keep is None else keep.collect_schema().names()
    if keep is not None:
        along = keep.select(pl.col(name).alias(_KEPT + name) for name in kept)
        table = replace(table, frame=pl.concat([table.frame, along], how="horizontal"))
    columns = [*_strings(run), *_numeric(run), *_categories(run)]
    columns += [_KEPT + name for name in kept]
    for block in table.blocks(columns, block_rows):
        beside = block.select(pl.col(_KEPT + name).alias(name) for name in kept)
        yield _inputs(run, table, block), beside


def _inputs(run: TrainedRun, table: Table, block: pl.DataFrame) -> RowInputs:
    """Return a block of the table's rows as tensors."""
    string_id = _stacked(block, _strings(run))
    for c, column in enumerate(run.data.strings):
        string_id[:, c] = table.strings[column.name].id_of_spelling[string_id[:, c]]
    numeric = np.zeros((len(block), 0), dtype=np.float32)
    if run.data.numeric:  # copied once
        numeric = block.select(_numeric(run)).to_numpy(order="c", writable=True)
    category = _stacked(block, _categories(run))
    return RowInputs(
        torch.from_numpy(string_id), torch.from_numpy(numeric), torch.from_numpy(category)
    )


def _strings(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's string columns."""
    return [f"string:{column.name}" for column in run.data.strings]


def _numeric(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's numeric features."""
    return [f"numeric:{column.column}" for column in run.data.numeric]


def _categories(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's category columns."""
    return [f"category:{column}" for column, _ in run.layout.categories]


def _features_only(run: TrainedRun) -> DataConfig:
    """Return the run's columns that the network reads, with the categories that it knows."""
    categories = tuple(
        CategoryColumn(column=column, values=values) for column, values in run.layout.categories
    )
    return run.data.model_copy(
        update={
            "categories": categories,
            "group": None,
            "stratum": None,
            "row_weight": None,
            "report_by": (),
        }
    )


def _frame_source(frame: Any, features: DataConfig) -> Source:
    """Return a frame in memory, or a lazy one, as the checks see a table."""
    twice: tuple[str, ...] = ()
    if isinstance(frame, pl.LazyFrame):
        lazy = frame
    elif isinstance(frame, pl.DataFrame):
        lazy = frame.lazy()
    elif hasattr(frame, "iloc") and hasattr(frame, "columns"):  # pandas, without importing it
        twice = tuple(name for name, count in Counter(map(str, frame.columns)).items() if count > 1)
        lazy = _from_pandas(frame, features).lazy()
    else:
        raise TableError(
            f"expected a polars or pandas frame or a path, found {type(frame).__name__}"
        )
    try:
        schema = dict(lazy.collect_schema())
    except pl.exceptions.PolarsError as error:
        raise TableError(f"the lazy frame cannot be evaluated: {error}") from None
    return Source(Path("the frame"), lazy, schema, is_csv=False, twice=twice)


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
        series = _series(name, frame.iloc[:, number]) if name in needed else nothing.alias(name)
        read.setdefault(name, series)
    return pl.DataFrame(list(read.values()))


def _series(name: str, column: Any) -> pl.Series:
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
        raise TableError(f"column '{name}' of the frame mixes types: {why:.200}") from None


def _stacked(block: pl.DataFrame, columns: list[str]) -> Int[np.ndarray, "B _"]:
    """Return columns of codes side by side."""
    if not columns:
        return np.zeros((len(block), 0), dtype=np.int64)
    return np.stack([block[column].to_numpy() for column in columns], axis=1).astype(np.int64)
