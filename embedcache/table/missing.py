"""Cells and values that stand for nothing: null, in numbers NaN, before anything is checked."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from embedcache.config.table import DataConfig
from embedcache.table.source import PARSED, parsed


def cleaned_cells(
    cells: pl.LazyFrame, names: Collection[str], null_values: Collection[str]
) -> pl.LazyFrame:
    """Return cells without surrounding blanks, those null that are empty or stand for nothing."""
    missing = ["", *(value.strip() for value in null_values)]
    stripped = cells.with_columns(pl.col(name).str.strip_chars() for name in names)
    return stripped.with_columns(
        pl.when(~_is_one_of(pl.col(name), missing)).then(pl.col(name)).alias(name) for name in names
    )


def _is_one_of(text: pl.Expr, values: Collection[str]) -> pl.Expr:
    """Whether text equals one of a few values."""
    return pl.any_horizontal(text == value for value in values)


def with_numbers(cells: pl.LazyFrame, names: Collection[str], data: DataConfig) -> pl.LazyFrame:
    """Return cells with what they are as numbers, NaN where a number stands for a missing value.

    Numbers are columns of the frame, not expressions repeated in every check: each cell is parsed
    once per pass, and not at all where nobody asks.
    """
    missing = _numbers_of(data.null_values)  # -999 is also written -999.0
    columns = []
    for name in names:
        number = parsed(name, data.csv.decimal)
        if missing:
            number = pl.when(number.is_in(missing)).then(math.nan).otherwise(number)
        columns.append(number.alias(PARSED + name))
    return cells.with_columns(columns)


def without_missing(
    frame: pl.LazyFrame, schema: Mapping[str, Any], null_values: Collection[str]
) -> pl.LazyFrame:
    """Return typed columns with null where a value stands for nothing."""
    if not null_values:
        return frame
    texts = [value.strip() for value in null_values]
    numbers = _numbers_of(null_values)
    changed = []
    for name, dtype in schema.items():
        column = pl.col(name)
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            missing = _is_one_of(column.cast(pl.String).str.strip_chars(), texts)
        elif dtype.is_numeric() and numbers:
            missing = pl.any_horizontal(column == number for number in numbers)
        else:
            continue
        changed.append(pl.when(~missing.fill_null(False)).then(column).alias(name))
    return frame.with_columns(changed)


def _numbers_of(texts: Collection[str]) -> list[float]:
    """Return those of some texts that are numbers."""
    return [number for text in texts if (number := _as_float(text)) is not None]


def _as_float(text: str) -> float | None:
    """Return the number that a text spells, None for what is none."""
    try:
        return float(text)
    except ValueError:
        return None
