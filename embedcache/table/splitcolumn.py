"""The column of a table that says which rows train: its splits, its folds, or when rows are from.

All become one canonical column: `split` with the names of splits, `fold` with the table's own names
of folds, or `time` as a number.
"""

from collections.abc import Sequence

import polars as pl

from embedcache.config.split import SPLITS, SplitConfig
from embedcache.table.canonical import Canonical
from embedcache.table.checks import Check
from embedcache.table.source import KEY, ColumnType, Source

MOST_SHOWN = 12  # admissible spellings in a message
# ISO 8601, from whole days to fractions of a second
_NAIVE = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
_ZONED = tuple(f"{form}%#z" for form in _NAIVE)


def add_split_column(table: Canonical, split: SplitConfig) -> None:
    """Add the canonical column that a split's strategy reads, if it reads one."""
    if split.column is None or table.source.row_cells is not None:
        return
    match split.strategy:
        case "column":
            _add_splits(table, split.column, split)
        case "folds":
            _add_folds(table, split.column)
        case "time":
            _add_times(table, split.column)


def _add_splits(table: Canonical, column: str, split: SplitConfig) -> None:
    what = f"split column '{column}'"
    key = table.require(column, what, KEY)
    if key is None:
        return
    lower, stands_for = key.str.to_lowercase(), split.split_of_spelling()
    meant = pl.lit(None, dtype=pl.String)
    for name in SPLITS:
        spellings = [text for text, of_split in stands_for.items() if of_split == name]
        meant = pl.when(lower.is_in(spellings)).then(pl.lit(name)).otherwise(meant)
    own = [text for texts in split.values.values() for text in texts]
    known = tuple(dict.fromkeys((*SPLITS, *own)))[:MOST_SHOWN]
    wrong = f"{what}: must be one of {', '.join(known)}"
    table.checks.append(Check(wrong, meant.is_null(), key, known=known, advice=_advice))
    table.columns["split"] = meant


def _advice(values: Sequence[str]) -> str:
    """Return how to say what the values of a split column stand for."""
    if not values:
        return ""
    mapping = "split.values: {train: [...], validation: [...], test: [...]}"
    if all(value.isdecimal() for value in values):
        return (
            "; if these are the numbers of folds, set split.strategy: folds; else say what they"
            f" stand for, {mapping}"
        )
    return f"; say what they stand for, {mapping}"


def _add_folds(table: Canonical, column: str) -> None:
    what = f"fold column '{column}'"
    key = table.require(column, what, KEY)
    if key is not None:
        empty = key.is_null() | (key.str.strip_chars() == "")
        table.check(f"{what}: null or empty", empty, key)
        table.columns["fold"] = key


def _add_times(table: Canonical, column: str) -> None:
    """Add a column of numbers, dates or texts of either, as numbers in their order."""
    what = f"time column '{column}'"
    if table.require(column, what, TIME) is None:
        return
    source, value = table.source, pl.col(column)
    if source.columns[column].is_temporal():
        number = _microseconds(value)
    elif source.is_text(column) or source.is_csv:
        as_number, as_date = source.number(column).fill_nan(None), _iso_date(source.text(column))
        table.check(
            f"{what}: neither a number nor an ISO date (2024-03-31, 2024-03-31T12:00:00)",
            value.is_not_null() & as_number.is_null() & as_date.is_null(),
            value,
        )
        table.check(
            f"{what}: numbers among dates; write all of them as ISO dates",
            as_number.is_not_null() & as_date.is_not_null().any(),
            value,
        )
        number = pl.coalesce(as_number, as_date)
    else:
        number = source.number(column).fill_nan(None)
    empty = value.is_null()
    if source.columns[column].is_float():
        empty = empty | value.is_nan()
    table.check(f"{what}: no value", empty, value)
    table.check(f"{what}: infinite", number.is_infinite(), number)
    table.columns["time"] = number


def _iso_date(text: pl.Expr) -> pl.Expr:
    """Return texts in ISO 8601 as microseconds since 1970, null where they are none.

    What names no time zone is taken for UTC.
    """
    days = text.str.replace(r"^(\d{4}-\d{2})$", "${1}-01")
    moments = [days.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))]
    moments += [text.str.to_datetime(form, time_unit="us", strict=False) for form in _NAIVE]
    zoned = text.str.replace(r"[zZ]$", "+00:00")
    moments += [
        zoned.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
        for form in _ZONED
    ]
    return pl.coalesce([_microseconds(moment) for moment in moments])


def _microseconds(moment: pl.Expr) -> pl.Expr:
    return moment.dt.epoch("us").cast(pl.Float64)


def _fits_time(source: Source, column: str) -> bool:
    dtype = source.columns[column]
    return source.is_number(column) or source.is_text(column) or dtype in (pl.Date, pl.Datetime)


TIME = ColumnType(
    "dates, datetimes, numbers or texts of these",
    _fits_time,
    lambda source, column: pl.col(column),
)
