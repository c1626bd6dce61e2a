"""What is in each column of a table: the numbers that roles are guessed from.

One column is in memory at a time, and of a text column its distinct values are looked at, not its
rows. Text is judged by what all of its cells are, never by the first hundred.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import polars as pl

from embedcache.table.source import Source, parsed

# cells that stand for nothing wherever they are, and those that do among numbers
_NOTHING = ("na", "n/a", "#n/a", "<na>", "nan", "null", "n.a.")
_NO_NUMBER = (*_NOTHING, "none", "-", "--", "?", ".", "nd", "n.d.", "missing", "unknown", "#value!")
_SENTINELS = (-999.0, -9999.0, -99999.0)  # where nothing else of the column is near
DECADES = 100.0  # largest over least number, from where on it may be read by its logarithm
TAIL = 10.0  # and the largest over the middle one; of evenly spread numbers it is about 2
_MOSTLY = 0.8  # of the cells that must be numbers, for the others to be faults
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}")
_COMMA, _POINT = r"^[+-]?\d+,\d+$", r"^[+-]?\d*\.\d+$"
_CODE = r"^0\d"  # digits that a number would lose


class Kind(Enum):
    """What the values of a column are."""

    NOTHING = "no value"
    NUMBER = "numbers"
    TRUTH = "truths"
    TEXT = "text"
    DATE = "dates"
    OTHER = "lists or other types that are neither text nor numbers"


@dataclass(frozen=True)
class Profile:
    """One column of N rows."""

    name: str
    kind: Kind
    num_rows: int
    num_missing: int  # null, empty, NaN, or a cell that stands for nothing
    num_distinct: int
    values: tuple[str, ...] = ()  # of text and truths: the distinct ones, the commonest first
    counts: tuple[int, ...] = ()  # and how many rows have each
    low: float | None = None
    high: float | None = None
    median: float | None = None
    is_whole: bool = False  # numbers without decimals
    counts_up: bool = False  # whole numbers, each one more than in the row before
    marks: tuple[str, ...] = ()  # cells that stand for nothing
    num_garbled: int = 0  # cells among numbers that are none
    is_twice: bool = False  # whether another column has the same name

    @property
    def num_values(self) -> int:
        """How many rows have a value."""
        return self.num_rows - self.num_missing

    @property
    def spans_decades(self) -> bool:
        """Whether all numbers are above zero, and most of them are far below the largest."""
        if self.low is None or self.high is None or self.median is None or self.low <= 0:
            return False
        return self.high >= DECADES * self.low and self.high >= TAIL * self.median

    @property
    def rows_per_value(self) -> float:
        """How many rows a distinct value has, on average."""
        return self.num_values / max(1, self.num_distinct)


def profiles(source: Source, decimal: str = ".") -> Iterator[Profile]:
    """Yield a profile of each column in their order; `decimal` is the mark in text."""
    for name, dtype in source.columns.items():
        found = _profile(source, name, dtype, decimal)
        yield replace(found, is_twice=name in source.twice)


def decimal_of(source: Source) -> str:
    """Return the decimal mark that more of the numbers in a text file have."""
    if not source.is_csv:
        return "."
    cells = [pl.col(name) for name in source.columns]
    sums = [
        pl.sum_horizontal(cell.str.contains(mark).fill_null(False).sum() for cell in cells)
        for mark in (_COMMA, _POINT)
    ]
    commas, points = (
        source.frame.select(sums[0].alias("commas"), sums[1].alias("points")).collect().row(0)
    )
    return "," if commas > points else "."


def _profile(source: Source, name: str, dtype: Any, decimal: str) -> Profile:
    if dtype.is_temporal():
        return _plain(source, name, Kind.DATE)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return _of_text(source, name, decimal)
    if dtype == pl.Boolean:
        column = source.frame.select(pl.col(name).cast(pl.String)).collect()[name]
        return _counted(name, Kind.TRUTH, column)
    if dtype.is_numeric():
        return _of_numbers(name, source.frame.select(pl.col(name)).collect()[name])
    return _plain(source, name, Kind.NOTHING if dtype == pl.Null else Kind.OTHER)


def _plain(source: Source, name: str, kind: Kind) -> Profile:
    rows, missing = (
        source.frame.select(pl.len(), pl.col(name).null_count().alias("missing")).collect().row(0)
    )
    return Profile(name, kind, rows, missing, 0)


def _of_numbers(name: str, column: pl.Series) -> Profile:
    """Return the profile of a column of numbers; a sentinel far from all others is a mark."""
    numbers = column.cast(pl.Float64).fill_nan(None)
    marks = _sentinels(numbers)
    numbers = pl.select(
        pl.when(~numbers.is_in([float(mark) for mark in marks])).then(numbers)
    ).to_series()
    found = numbers.drop_nulls()
    finite = found.filter(found.is_finite())
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)  # type: ignore[arg-type]
    steps = column.cast(pl.Float64).diff().drop_nulls()
    return Profile(
        name=name,
        kind=Kind.NUMBER if len(found) else Kind.NOTHING,
        num_rows=len(column),
        num_missing=numbers.null_count(),
        num_distinct=found.n_unique(),
        low=low,
        high=high,
        median=float(finite.median()) if len(finite) else None,  # type: ignore[arg-type]
        is_whole=bool((finite == finite.round()).all()),
        counts_up=len(steps) == len(column) - 1 > 0 and bool((steps == 1).all()),
        marks=marks,
    )


def _sentinels(numbers: pl.Series) -> tuple[str, ...]:
    """Return -999 and its like where several rows have it and all others lie far from it."""
    found = []
    for sentinel in _SENTINELS:
        rest = numbers.filter(~numbers.is_in(list(_SENTINELS))).drop_nulls()
        low: Any = rest.min()
        if (numbers == sentinel).sum() > 1 and low is not None and low > 0.5 * sentinel:
            found.append(f"{sentinel:.0f}")
    return tuple(found)


def _of_text(source: Source, name: str, decimal: str) -> Profile:
    """Return the profile of a column of text, be it of numbers or truths written as text."""
    text = source.frame.select(source.text(name).alias(name)).collect()[name]
    text = pl.select(pl.when(text != "").then(text)).to_series().alias(name)
    distinct = text.drop_nulls().value_counts().sort("count", name, descending=[True, False])
    if not len(distinct):
        return Profile(name, Kind.NOTHING, len(text), len(text), 0)
    numbers = distinct.select(parsed(name, decimal)).to_series()
    words = distinct[name].str.to_lowercase()
    is_truth = words.is_in(["true", "false"])
    is_none = words.is_in(_NO_NUMBER) | (numbers.is_nan().fill_null(False))
    is_code = distinct[name].str.contains(_CODE) & ~distinct[name].str.contains("[.,]")
    counts = distinct["count"]
    rest = int(counts.filter(~is_none).sum())
    is_number = numbers.is_not_null() & ~is_none & ~is_truth & ~is_code
    num_numbers = int(counts.filter(is_number).sum())
    if num_numbers and num_numbers >= _MOSTLY * rest:
        return _of_numbers_in_text(text, distinct, is_none, decimal, rest - num_numbers)
    is_mark = words.is_in(_NOTHING)
    if rest and is_truth.filter(~is_none).all():
        is_mark = is_none
    marks = tuple(distinct[name].filter(is_mark))
    kept = pl.select(pl.when(~text.is_in(marks)).then(text)).to_series().alias(name)
    if rest and is_truth.filter(~is_mark).all():
        return replace(_counted(name, Kind.TRUTH, kept.str.to_lowercase()), marks=marks)
    dates = distinct[name].filter(~is_mark).head(1000)
    if len(dates) and all(_DATE.fullmatch(value) for value in dates):
        return Profile(name, Kind.DATE, len(text), kept.null_count(), len(distinct), marks=marks)
    return replace(_counted(name, Kind.TEXT, kept), marks=marks)


def _of_numbers_in_text(
    text: pl.Series, distinct: pl.DataFrame, is_none: pl.Series, decimal: str, num_garbled: int
) -> Profile:
    """Return the profile of numbers that are written as text."""
    marks = tuple(value for value in distinct[text.name].filter(is_none) if value.lower() != "nan")
    kept = pl.select(pl.when(~text.is_in(marks)).then(text)).to_series().alias(text.name)
    numbers = kept.to_frame().select(parsed(text.name, decimal)).to_series()
    found = _of_numbers(text.name, numbers)
    return replace(
        found,
        num_missing=found.num_missing - num_garbled,
        marks=(*marks, *found.marks),
        num_garbled=num_garbled,
    )


def _counted(name: str, kind: Kind, text: pl.Series) -> Profile:
    """Return the profile of a column of names, with all its values."""
    counts = text.drop_nulls().value_counts().sort(pl.nth(1), pl.nth(0), descending=[True, False])
    values, rows = (tuple(counts[column]) for column in counts.columns)
    return Profile(
        name=name,
        kind=kind if values else Kind.NOTHING,
        num_rows=len(text),
        num_missing=text.null_count(),
        num_distinct=len(values),
        values=values,
        counts=rows,
    )
