"""The user's file as a lazy polars frame: its header, its types, and how values of each are read.

Cells of text files (CSV, spreadsheets) are read as text and parsed here, never by inference: a
guess from the first hundred rows would end in an error at row 100,000, or turn a column of codes
into numbers. So every value that is not what the config says is found, counted and located like any
other violation.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from embedcache.config.table import DataConfig
from embedcache.errors import TableError
from embedcache.table.cells import CellCounts, count_cells
from embedcache.table.kinds import KINDS, no_table, parquet_files
from embedcache.table.spelling import spelled_rows
from embedcache.table.textfile import UNPACKED, not_utf8, open_text

PARSED = "number:"  # before the name of a text file's column: what its cells are as numbers
RECORD = "record:"  # the number of a text file's record, where some records are broken
_WHOLE_NUMBER = r"^-?(0|[1-9][0-9]{0,17})$"  # that Int64 holds and writes as it was
_CODE = r"^[+-]?(0[0-9]|[0-9]{17,}$)"  # digits that a number would lose
TEXT_KINDS = (".csv", ".tsv", ".txt")
ARROW_KINDS = (".arrow", ".feather", ".ipc")


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
        return _parsed(column, ".") if is_text else pl.col(column).cast(pl.Float64)

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


def open_source(path: str | Path, data: DataConfig, named: str = "data.path") -> Source:
    """Return the table at `path`, unread; `data` says how text is written and what is missing.

    Raises TableError, with the key or flag that `named` it, where there is none, or none that can
    be read.
    """
    file = Path(path)
    if not file.exists():
        raise no_table(file, named)
    try:
        if file.is_dir():
            return _open_typed(file, _scan_folder(file, named), data)
        kind = kind_of(file)
        if kind == ".parquet":
            return _open_typed(
                file, pl.scan_parquet(file, glob=False, hive_partitioning=False), data
            )
        if kind in ARROW_KINDS:
            return _open_typed(file, pl.scan_ipc(file, glob=False), data)
        if kind == ".xlsx":
            return _open_sheet(file, data)
        if kind in TEXT_KINDS:
            return _open_text(file, kind, data)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = " ".join(str(error).split())
        raise TableError(f"{file} cannot be read: {what:.400}") from None
    raise TableError(f"{file}: expected {KINDS}, found '{file.suffix}'")


def kind_of(file: Path) -> str:
    """Return the suffix that says what a file holds, behind which that of a packing may be."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in UNPACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def frame_source(
    frame: pl.LazyFrame, data: DataConfig, twice: tuple[str, ...] = (), name: str = "the frame"
) -> Source:
    """Return a lazy frame as a table."""
    schema = dict(frame.collect_schema())
    cleaned = _without_missing(frame, schema, data.null_values)
    return Source(Path(name), cleaned, schema, is_csv=False, twice=twice, original=frame)


class CellKind(Enum):
    """What all cells of a text file's column are, empty ones aside."""

    TEXT = "text, or nothing"
    TRUTHS = "true and false"
    WHOLE = "whole numbers"
    NUMBERS = "numbers"


def kinds_of_cells(source: Source, names: Sequence[str]) -> dict[str, CellKind]:
    """Return what the cells of a text file's columns are, by a pass over all of them.

    Codes whose digits a number would lose are text.
    """
    if not names:
        return {}
    lower = {name: pl.col(name).str.to_lowercase() for name in names}
    tests = {
        name: (
            pl.col(name).is_not_null().any(),
            lower[name].is_in(["true", "false"]).all(),
            pl.col(name).str.contains(_WHOLE_NUMBER).all(),
            (~source.is_garbled(name) & ~pl.col(name).str.contains(_CODE)).all(),
        )
        for name in names
    }
    found = source.frame.select(
        test.alias(f"{number}{name}") for name in names for number, test in enumerate(tests[name])
    )
    outcomes = found.collect(engine="streaming").row(0)
    kinds = {}
    for number, name in enumerate(names):
        has_any, are_truths, are_whole, are_numbers = outcomes[4 * number : 4 * number + 4]
        kinds[name] = CellKind.TEXT
        if has_any and are_truths:
            kinds[name] = CellKind.TRUTHS
        elif has_any and are_whole:
            kinds[name] = CellKind.WHOLE
        elif has_any and are_numbers:
            kinds[name] = CellKind.NUMBERS
    return kinds


def typed(source: Source) -> pl.LazyFrame:
    """Return a text file's rows with each column as the type that all of its cells have."""
    columns = []
    for name, kind in kinds_of_cells(source, list(source.columns)).items():
        column = pl.col(name)
        if kind is CellKind.TRUTHS:
            column = column.str.to_lowercase() == "true"
        elif kind is CellKind.WHOLE:
            column = column.cast(pl.Int64)
        elif kind is CellKind.NUMBERS:
            column = pl.col(PARSED + name)
        columns.append(column.alias(name))
    return source.frame.select(columns)


def _open_typed(file: Path, frame: pl.LazyFrame, data: DataConfig) -> Source:
    return frame_source(frame, data, name=str(file))


def _scan_folder(folder: Path, named: str) -> pl.LazyFrame:
    """Return all Parquet files in a folder, in the order of their names; key=value folders count.

    Names that begin with a dot or an underscore are left by other tools and no rows.
    """
    files = parquet_files(folder)
    if not files:
        raise TableError(f"there is no Parquet file in the folder {folder}; {named} must name one")
    partitioned = any("=" in part for file in files for part in file.relative_to(folder).parts[:-1])
    return pl.scan_parquet(files, glob=False, hive_partitioning=partitioned)


def _open_sheet(file: Path, data: DataConfig) -> Source:
    """Return the first sheet of a spreadsheet, its cells as text."""
    try:
        import fastexcel  # an extra
    except ModuleNotFoundError:
        raise TableError(
            f"{file}: spreadsheets are read by fastexcel, which is not installed; pip install"
            " 'embedcache-fusionnet[excel]', or save the sheet as CSV"
        ) from None
    try:
        cells = pl.read_excel(file, engine="calamine", infer_schema_length=0)
    except (pl.exceptions.PolarsError, fastexcel.FastExcelError) as error:
        raise TableError(f"{file} cannot be read as a spreadsheet: {error!s:.200}") from None
    cells = cells.select(pl.col(name).cast(pl.String) for name in cells.columns)
    names = cells.columns
    frame = _with_numbers(_cleaned(cells.lazy(), names, data.null_values), names, data)
    return Source(file, frame, dict(cells.schema), True, (), cells.lazy())


def _open_text(file: Path, kind: str, data: DataConfig) -> Source:
    """Return a CSV's cells as text, and beside each column what it is as a number."""
    text = open_text(file, data.csv, kind)
    counts = count_cells(text.plain, text.separator)
    if counts.not_utf8 is not None:
        raise not_utf8(file, counts.not_utf8)
    if counts.open_quote is not None:
        raise TableError(
            f"{file}: a quote is opened and never closed, in or behind row {counts.open_quote:,}"
            " (counted from 0, without the header); close it, or write a quote in a cell twice"
        )
    cells = pl.scan_csv(
        text.plain,
        separator=text.separator,
        infer_schema=False,
        glob=False,
        truncate_ragged_lines=bool((counts.ragged_cells > counts.num_cells).any()),
    )
    schema = {
        name: dtype
        for name, dtype in cells.collect_schema().items()
        if not name.startswith((PARSED, RECORD))
    }
    names = list(schema)
    cells, ragged = _records(cells, counts)
    frame = _with_numbers(_cleaned(cells, names, data.null_values), names, data)
    return Source(
        file,
        frame,
        schema,
        is_csv=True,
        twice=tuple(name for name, count in Counter(text.names).items() if count > 1),
        original=cells.select(names),
        num_blank=len(counts.blank),
        ragged=ragged,
        num_cells=counts.num_cells,
        row_cells=_cells_of_all(counts),
        copy=text.copy,
    )


def _cells_of_all(counts: CellCounts) -> int | None:
    """Return how many cells each record has, where that is another number than the header's."""
    found = set(counts.ragged_cells.tolist())
    are_all = len(counts.ragged) == counts.num_records - len(counts.blank)
    return found.pop() if are_all and len(found) == 1 else None


def _records(cells: pl.LazyFrame, counts: CellCounts) -> tuple[pl.LazyFrame, dict[int, int]]:
    """Return the records that are rows, numbered if some are broken, and the broken ones.

    Numbers are columns of the frame only where they are needed: a scan without them is faster.
    """
    blank = counts.blank
    num_rows = counts.num_records - len(blank)
    if len(blank) and blank[0] == num_rows:  # at the end alone, as spreadsheets leave them
        cells = cells.head(num_rows)
    elif len(blank):
        numbered = cells.with_row_index(RECORD)
        cells = numbered.filter(~pl.col(RECORD).is_in(blank.tolist())).drop(RECORD)
    rows = counts.ragged - np.searchsorted(blank, counts.ragged)
    if len(rows):
        cells = cells.with_row_index(RECORD)
    return cells, dict(zip(rows.tolist(), counts.ragged_cells.tolist(), strict=True))


def _cleaned(
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


def _with_numbers(cells: pl.LazyFrame, names: Collection[str], data: DataConfig) -> pl.LazyFrame:
    """Return cells with what they are as numbers, NaN where a number stands for a missing value.

    Numbers are columns of the frame, not expressions repeated in every check: each cell is parsed
    once per pass, and not at all where nobody asks.
    """
    missing = _numbers_of(data.null_values)  # -999 is also written -999.0
    columns = []
    for name in names:
        number = _parsed(name, data.csv.decimal)
        if missing:
            number = pl.when(number.is_in(missing)).then(math.nan).otherwise(number)
        columns.append(number.alias(PARSED + name))
    return cells.with_columns(columns)


def _parsed(column: str, decimal: str) -> pl.Expr:
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


def _without_missing(
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
