"""Rows as JSON has them, a list of records or lists by column, to a frame of the run's columns.

Everything that is wrong is said at once, with row numbers. A column's type follows from its role:
numbers are float64, so that requests with 1 and with 1.5 can be answered together; names keep
their kind, since 7 and "7" name the same and 7.0 does too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from embedcache.config.table import DataConfig
from embedcache.text import NUM_EXAMPLES, count_of, nearest, rows_text, visible
from fusionnet.serving.limits import Limits
from fusionnet.serving.refusals import COUNTED, RequestError, TooLargeError
from fusionnet.trained.run import TrainedRun

_MOST_NAMED = 20  # unknown columns
_CELLS = (str, float, int, bool, type(None))
_LARGEST_INTEGER = 1 << 63


@dataclass(frozen=True)
class KnownColumns:
    """The columns that a run reads, in their order, and those that it knows and does not need."""

    read: tuple[str, ...]
    numeric: frozenset[str]  # of `read`: those that are numbers alone
    unneeded: frozenset[str]  # targets, groups, weights: left aside

    @classmethod
    def of(cls, run: TrainedRun) -> "KnownColumns":
        """Return the columns of a run."""
        data = run.data
        numeric = [column.column for column in data.numeric]
        named = [column.column for columns in (data.strings, data.categories) for column in columns]
        read = tuple(dict.fromkeys([*(c.column for c in data.strings), *numeric, *named]))
        only_numbers = frozenset(numeric) - frozenset(named)
        return cls(read, only_numbers, frozenset(_unneeded(run, data)) - frozenset(read))


def _unneeded(run: TrainedRun, data: DataConfig) -> list[str]:
    """Return the columns of the training table that no prediction reads."""
    found = [task["column"] for task in run.config["tasks"]]
    split = run.config.get("split", {}).get("column")
    found += [name for name in (data.group, data.stratum, split, *data.report_by) if name]
    if data.row_weight is not None:
        found.append(data.row_weight.column)
    return found


def frame_of(values: Any, as_records: bool, known: KnownColumns, limits: Limits) -> pl.DataFrame:
    """Return rows as a frame of the columns that the run reads.

    Raises RequestError with all violations, TooLargeError for more rows than one request may have.
    """
    columns, num_rows = (_of_records if as_records else _of_columns)(values, limits.rows)
    wrong = _unknown_columns(columns, known)
    series: list[pl.Series] = []
    for name in known.read:
        if num_rows == 0:
            dtype = pl.Float64 if name in known.numeric else pl.String
            series.append(pl.Series(name, [], dtype=dtype))
        elif name in columns:
            found, problems = _series(name, columns[name], name in known.numeric, limits)
            series.append(found)
            wrong += problems
    if wrong:
        ways = "1 way" if len(wrong) == 1 else f"{len(wrong)} ways"
        raise RequestError(f"the rows are wrong in {ways} ({COUNTED})", wrong)
    if not series:
        raise RequestError("the rows have no column that the run reads", known.read)
    return pl.DataFrame(series)


def _of_records(rows: Any, most: int) -> tuple[dict[str, list[Any]], int]:
    """Return the cells of records by column; a key that a record lacks is null there."""
    if not isinstance(rows, list):
        raise RequestError("rows is to be a list of objects, one per row")
    _check_number(len(rows), most)
    broken = [number for number, row in enumerate(rows) if type(row) is not dict]
    if broken:
        where = rows_text(broken[:NUM_EXAMPLES], len(broken))
        raise RequestError(
            "rows is to be a list of objects, one per row",
            [f"{count_of(len(broken), 'row')} not an object; {where}"],
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, len(rows)


def _of_columns(columns: Any, most: int) -> tuple[dict[str, list[Any]], int]:
    """Return the cells by column, which have one length."""
    if not isinstance(columns, dict) or not all(type(each) is list for each in columns.values()):
        raise RequestError("columns is to be an object of lists, one per column")
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        told = [f"{visible(name, 80)}: {length:,}" for name, length in lengths.items()]
        raise RequestError("the columns have different lengths", told[:_MOST_NAMED])
    num_rows = max(lengths.values(), default=0)
    _check_number(num_rows, most)
    return columns, num_rows


def _check_number(num_rows: int, most: int) -> None:
    if num_rows > most:
        raise TooLargeError(
            f"the request has {num_rows:,} rows, and one may have {most:,}; send several requests"
        )


def _unknown_columns(columns: Sequence[str] | dict[str, Any], known: KnownColumns) -> list[str]:
    """Return a line on each column that the run has never heard of, with the nearest one it has."""
    unknown = [name for name in columns if name not in known.read and name not in known.unneeded]
    lines = [
        f"unknown column '{visible(name, 80)}'"
        + (nearest(name, known.read) or f"; the run reads {', '.join(known.read[:8])}, ...")
        for name in unknown[:_MOST_NAMED]
    ]
    if len(unknown) > _MOST_NAMED:
        lines.append(f"and {len(unknown) - _MOST_NAMED:,} further unknown columns")
    return lines


def _series(
    name: str, cells: list[Any], is_numeric: bool, limits: Limits
) -> tuple[pl.Series, list[str]]:
    """Return a column of one type, and what is wrong with its cells."""
    kinds = set(map(type, cells)) - {type(None)}
    nothing = pl.Series(name, [None], dtype=pl.Float64 if is_numeric else pl.String)
    nothing = nothing.new_from_index(0, len(cells))
    if not kinds <= set(_CELLS):
        return nothing, [_line(name, "a list or an object in a cell", cells, _is_nested)]
    if str in kinds:
        return _texts(name, cells, kinds, nothing, limits)
    if bool in kinds and kinds != {bool} and not is_numeric:
        return nothing, [_line(name, "true or false among numbers", cells, _is_truth)]
    if is_numeric or float in kinds:
        wrong = [_line(name, "beyond all numbers", cells, _is_endless)]
        if any(map(_is_endless, cells)):
            return nothing, wrong
        return pl.Series(name, cells, dtype=pl.Float64, strict=False), []
    if any(map(_is_long, cells)):
        return nothing, [_line(name, "an integer of more than 64 bits", cells, _is_long)]
    return pl.Series(name, cells, dtype=None if kinds else pl.String), []


def _texts(
    name: str, cells: list[Any], kinds: set[type], nothing: pl.Series, limits: Limits
) -> tuple[pl.Series, list[str]]:
    """Return a column of texts, and what is wrong with its cells."""
    if kinds != {str}:
        return nothing, [_line(name, "text among numbers", cells, _is_text)]
    if any(text is not None and len(text) > limits.text_characters for text in cells):
        long = [text is not None and len(text) > limits.text_characters for text in cells]
        what = f"a text of more than {limits.text_characters:,} characters"
        return nothing, [_line(name, what, long, bool)]
    try:
        return pl.Series(name, cells, dtype=pl.String), []
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return nothing, [_line(name, "characters that no text has", cells, _is_no_unicode)]


def _line(name: str, what: str, cells: Sequence[Any], is_broken: Any) -> str:
    """Return a line on the cells that are broken, with the first rows."""
    rows = [number for number, cell in enumerate(cells) if is_broken(cell)]
    count = count_of(len(rows), "row")
    return f"column '{visible(name, 80)}': {what}: {count}; {_rows(rows)}"


def _rows(rows: Sequence[int]) -> str:
    return rows_text(rows[:NUM_EXAMPLES], len(rows))


def _is_nested(cell: Any) -> bool:
    return type(cell) not in _CELLS


def _is_text(cell: Any) -> bool:
    return type(cell) is str


def _is_truth(cell: Any) -> bool:
    return type(cell) is bool


def _is_long(cell: Any) -> bool:
    return type(cell) is int and not -_LARGEST_INTEGER <= cell < _LARGEST_INTEGER


def _is_endless(cell: Any) -> bool:
    """Whether a number is beyond float64: 1e400, which Python reads as infinite, or an integer."""
    try:
        return cell is not None and not math.isfinite(cell)
    except OverflowError:
        return True


def _is_no_unicode(cell: Any) -> bool:
    return cell is not None and any("\ud800" <= letter <= "\udfff" for letter in cell)
