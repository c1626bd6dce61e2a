"""The user's file as a lazy polars frame: its header, its types, and how values of each are read.

CSV columns are read as text and parsed here, never by inference: a guess from the first hundred
rows would end in an error at row 100,000, or turn a column of codes into numbers. So every value
that is not what the config says is found, counted and located like any other violation.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from embedcache.errors import TableError

PARSED = "number:"  # before the name of a CSV column: what its text is as a number


@dataclass(frozen=True)
class Source:
    """A Parquet or CSV file, opened but not read."""

    path: Path
    frame: pl.LazyFrame
    columns: Mapping[str, Any]  # polars data types, whose repr beartype refuses
    is_csv: bool
    twice: tuple[str, ...]  # names that the header has more than once

    def text(self, column: str) -> pl.Expr:
        """Return a column of text, categories, integers or booleans as text."""
        return pl.col(column).cast(pl.String)

    def number(self, column: str) -> pl.Expr:
        """Return a column as float64: booleans as 0 and 1, text parsed, null where that fails."""
        if self.is_csv:
            return pl.col(PARSED + column)
        return _parsed(column) if self.is_text(column) else pl.col(column).cast(pl.Float64)

    def is_number(self, column: str) -> bool:
        """Whether the column can be read as numbers."""
        dtype = self.columns[column]
        return self.is_csv or dtype.is_numeric() or dtype == pl.Boolean

    def is_text(self, column: str) -> bool:
        """Whether the column holds text."""
        return self.columns[column] in (pl.String, pl.Categorical, pl.Enum)

    def is_key(self, column: str) -> bool:
        """Whether the column can name groups or categories.

        Text, integers or booleans can, whose spelling is unambiguous.
        """
        dtype = self.columns[column]
        return self.is_text(column) or dtype.is_integer() or dtype == pl.Boolean


class ColumnType(NamedTuple):
    """What a column of some role may hold, in words and as a test, and how it is then read."""

    expected: str
    fits: Callable[[Source, str], bool]
    read: Callable[[Source, str], pl.Expr]


TEXT = ColumnType("text", Source.is_text, Source.text)
KEY = ColumnType("text, integers or booleans", Source.is_key, Source.text)
NUMBER = ColumnType("numbers or booleans", Source.is_number, Source.number)
# a column of truth values may also spell them: "true", "0"
NUMBER_IN_WORDS = ColumnType(
    "numbers or booleans",
    lambda source, column: source.is_number(column) or source.is_text(column),
    Source.number,
)


def open_source(path: str | Path) -> Source:
    """Return the table at `path`, unread.

    Raises TableError where there is none, or none that polars can read.
    """
    file = Path(path)
    if not file.is_file():
        raise TableError(f"there is no table {file}; data.path must name a Parquet or CSV file")
    kind = file.suffix.lower()
    if kind not in (".parquet", ".csv"):
        raise TableError(f"{file}: expected a file that ends in .parquet or .csv, found '{kind}'")
    try:
        if kind == ".csv":
            header = _csv_header(file)
            frame = _scan_csv(file)
        else:
            header = []
            frame = pl.scan_parquet(file, glob=False, hive_partitioning=False)
        schema = {
            name: dtype
            for name, dtype in frame.collect_schema().items()
            if not (kind == ".csv" and name.startswith(PARSED))
        }
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise TableError(f"{file} cannot be read as {kind[1:]}: {error}") from None
    twice = tuple(name for name, count in Counter(header).items() if count > 1)
    return Source(file, frame, schema, kind == ".csv", twice)


def _scan_csv(file: Path) -> pl.LazyFrame:
    """Return a CSV's cells as text, and beside each column what it is as a number.

    Text comes without surrounding blanks; empty cells, quoted or not, are null. Numbers are columns
    of the frame, not expressions repeated in every check: each cell is parsed once per pass, and
    not at all where nobody asks.
    """
    cells = pl.scan_csv(file, infer_schema=False, glob=False)
    names = cells.collect_schema().names()
    stripped = [pl.col(name).str.strip_chars() for name in names]
    cleaned = cells.with_columns(stripped).with_columns(
        pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names
    )
    return cleaned.with_columns(_parsed(name).alias(PARSED + name) for name in names)


def _parsed(column: str) -> pl.Expr:
    """Return a text column as float64; null where it is no number."""
    text = pl.col(column).cast(pl.String)
    number = text.cast(pl.Float64, strict=False)
    lower = text.str.to_lowercase()
    # not replace_strict: it is no part of a stream, so all of the column would be in memory
    truth = pl.when(lower == "true").then(1.0).when(lower == "false").then(0.0)
    return pl.coalesce(number, truth)


def _csv_header(file: Path) -> list[str]:
    """Return the names in the first record; polars renames a duplicate silently."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise TableError(
                f"{file}: the header cannot be read, line {reader.line_num}: {error}; is a quote"
                " opened there that is not closed?"
            ) from None
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise TableError(
            f"{file}: the header is a single name, '{names[0][:80]}'; separate columns by commas"
        )
    return names
