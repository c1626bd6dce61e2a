"""A table that is opened but not read: its columns, and how values of each are read.

Cells of text files (CSV, spreadsheets) are read as text and parsed here, never by inference: a
guess from the first hundred rows would end in an error at row 100,000, or turn a column of codes
into numbers. So every value that is not what the config says is found, counted and located like any
other violation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from embedcache.table.spelling import spelled_rows

PARSED = "number:"  # before the name of a text file's column: what its cells are as numbers
RECORD = "record:"  # the number of a text file's record, where some records are broken


@dataclass(frozen=True)
class Source:
    """A table, opened but not read."""

    path: Path
    frame: pl.LazyFrame  # missing values are null
    columns: Mapping[str, Any]  # polars data types, whose repr beartype refuses
    is_csv: bool  # whether its cells are text, parsed here
    twice: tuple[str, ...]  # names that the header has more than once
    original: pl.LazyFrame  # the same rows, as they are written
    num_blank: int = 0  # records without any cell, which are no rows
    # records with another number of cells than the header, by row, and how many they have
    ragged: Mapping[int, int] = field(default_factory=dict)
    num_cells: int = 0  # of the header, for a text file
    row_cells: int | None = None  # of each record, where all have as many, but not the header
    # columns whose every value is spelled as all formats spell it, so that nothing is to be done
    as_spelled: frozenset[str] = frozenset()
    copy: Any = None  # what keeps a temporary copy alive while rows are read from it

    def text(self, column: str) -> pl.Expr:
        """Return a column of text, categories, numbers or booleans as text, without blanks."""
        text = pl.col(column).cast(pl.String)
        return text if self.is_csv or column in self.as_spelled else text.str.strip_chars()

    def key(self, column: str) -> pl.Expr:
        """Return a column that names something, in the spelling that all formats share."""
        text = pl.col(column).cast(pl.String)
        return text if column in self.as_spelled else spelled_rows(text)

    def number(self, column: str) -> pl.Expr:
        """Return a column as float64: booleans as 0 and 1, text parsed, null where that fails.

        NaN, which pandas and R write for a missing value, is still there.
        """
        if self.is_csv:
            return pl.col(PARSED + column)
        is_text = self.is_text(column) and self.columns[column] != pl.Null
        return parsed(column, ".") if is_text else pl.col(column).cast(pl.Float64)

    def is_missing(self, column: str) -> pl.Expr:
        """Whether a column of numbers has no value: null or NaN."""
        return pl.col(column).is_null() | self.number(column).is_nan()

    def is_garbled(self, column: str) -> pl.Expr:
        """Whether a column of numbers has a text that is none."""
        return pl.col(column).is_not_null() & self.number(column).is_null()

    def is_number(self, column: str) -> bool:
        """Whether the column can be read as numbers; one without any value can be anything."""
        dtype = self.columns[column]
        return self.is_csv or dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)

    def is_text(self, column: str) -> bool:
        """Whether the column holds text."""
        return self.columns[column] in (pl.String, pl.Categorical, pl.Enum, pl.Null)

    def is_key(self, column: str) -> bool:
        """Whether the column can name groups or categories."""
        dtype = self.columns[column]
        return self.is_text(column) or dtype.is_numeric() or dtype == pl.Boolean


class ColumnType(NamedTuple):
    """What a column of some role may hold, in words and as a test, and how it is then read."""

    expected: str
    fits: Callable[[Source, str], bool]
    read: Callable[[Source, str], pl.Expr]


TEXT = ColumnType("text", Source.is_text, Source.text)
KEY = ColumnType("text, numbers or booleans", Source.is_key, Source.key)
NUMBER = ColumnType("numbers or booleans", Source.is_number, Source.number)
# a column of truth values may also spell them: "true", "0"
NUMBER_IN_WORDS = ColumnType(
    "numbers or booleans",
    lambda source, column: source.is_number(column) or source.is_text(column),
    Source.number,
)


def parsed(column: str, decimal: str) -> pl.Expr:
    """Return a text column as float64; null where it is no number."""
    text = pl.col(column).cast(pl.String)
    if decimal == ",":  # a dot would be a thousand's, or the other decimal mark: it is no number
        text = pl.when(~text.str.contains(".", literal=True)).then(
            text.str.replace(",", ".", literal=True)
        )
    number = text.cast(pl.Float64, strict=False)
    lower = text.str.to_lowercase()
    # not replace_strict: it is no part of a stream, so all of the column would be in memory
    truth = pl.when(lower == "true").then(1.0).when(lower == "false").then(0.0)
    return pl.coalesce(number, truth)
