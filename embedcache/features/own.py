"""A user's own features of each string: the numbers of a table, found by the string.

Its keys are prepared as the data's strings are (`replace`, `canonicalize`), so that spellings do
not matter. All that is wrong with the table is one TableError; a string of the data that it lacks
is refused as one that the encoder cannot read would be: with its rows, or left out with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32
from tqdm import tqdm

from embedcache.config.columns import StringColumn
from embedcache.config.features import FeatureTable
from embedcache.config.table import DataConfig
from embedcache.errors import TableError
from embedcache.features.chemistry import as_float32
from embedcache.table.psmiles import prepare_string
from embedcache.table.reader import open_source
from embedcache.table.source import Source
from embedcache.table.strings import MANY
from embedcache.text import count_of, nearest, rows_text

MOST_NAMED = 3  # columns or keys in one line


@dataclass(frozen=True)
class OwnTable:
    """The K numbers of each string that one table has, by prepared string."""

    config: FeatureTable
    columns: tuple[str, ...]
    row_of: Mapping[str, int]
    values: Float32[np.ndarray, "R K"]  # NaN is missing
    unread: Mapping[str, str]  # keys that are no strings of the column's kind, with the reason

    def of(self, texts: Sequence[str]) -> Float32[np.ndarray, "S K"]:
        """Return the numbers of prepared strings, all missing for one that the table lacks."""
        rows = [self.row_of.get(text, -1) for text in texts]
        missing = np.full((1, len(self.columns)), np.nan, dtype=np.float32)
        return np.concatenate([self.values, missing])[rows]


class OwnTables:
    """The tables of features that a config names, each read once, when it is first asked for."""

    def __init__(self, data: DataConfig) -> None:
        """Read nothing yet."""
        self._data = data
        self._read: dict[tuple[str, FeatureTable], OwnTable] = {}

    def of(self, column: StringColumn) -> list[OwnTable]:
        """Return the tables of a string column, in the order of its features.

        Raises TableError for one that is not there, or not a table of features.
        """
        found = []
        for config in column.features:
            if isinstance(config, FeatureTable):
                key = column.name, config
                if key not in self._read:
                    self._read[key] = read_own(config, column, self._data)
                found.append(self._read[key])
        return found

    def unreadable(self, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
        """Return the strings of a column that one of its tables lacks, with the reason.

        What a null stands for need not be in a table.
        """
        of_null = None if column.if_null is None else prepare_string(column.if_null, column)
        reasons: dict[str, str] = {}
        for table in self.of(column):
            reason = f"has no features in {table.config.table}"
            if table.unread:
                key, why = next(iter(table.unread.items()))
                reason += (
                    f"; {count_of(len(table.unread), 'key')} of it are not of kind {column.kind},"
                    f" e.g. {key!r:.80} {why}"
                )
            reasons |= {text: reason for text in texts if text not in table.row_of}
        reasons.pop(of_null, None)  # type: ignore[arg-type]  # None is no string's
        return reasons


def refuse_lacking(own: OwnTables, column: StringColumn, texts: Sequence[str]) -> None:
    """Raise TableError for strings of a column that one of its tables lacks."""
    lacking = own.unreadable(column, texts)
    if lacking:
        text, reason = next(iter(lacking.items()))
        named = ", ".join(repr(text[:80]) for text in list(lacking)[:MOST_NAMED])
        more = ", ..." if len(lacking) > MOST_NAMED else ""
        raise TableError(
            f"{count_of(len(lacking), 'string')} of column '{column.name}' without"
            f" features: {named}{more}; {text[:80]!r} {reason}. Add them to the table, with what is"
            " not known left empty, or leave out their rows by data.on_invalid: skip"
        )


def read_own(config: FeatureTable, column: StringColumn, data: DataConfig) -> OwnTable:
    """Return a table of features; `data` says how text is written and what is missing.

    Raises one TableError with all that is wrong.
    """
    named = f"features.table of data.strings '{column.name}'"
    source = open_source(config.table, data, named)
    _refuse_columns(source, config, named)
    names = [name for name in source.columns if name != config.key]
    frame = source.frame.select(
        source.text(config.key).alias("key"),
        *(source.number(name).alias(f"value:{k}") for k, name in enumerate(names)),
        *(source.is_garbled(name).alias(f"garbled:{k}") for k, name in enumerate(names)),
    ).collect(engine="streaming")
    keys = frame["key"].to_list()
    values = as_float32(frame.select(pl.col("^value:.*$")).to_numpy().astype(np.float64))
    prepared, unread = _prepared([key for key in keys if key is not None], column)
    wrong = [*_garbled(frame, names, config), *_without_key(keys)]
    row_of, different = _rows_of(keys, prepared, values)
    if different:
        shown = ", ".join(f"{text:.80}" for text in different[:MOST_NAMED])
        wrong.append(f"{count_of(len(different), 'string')} with several values, e.g. {shown}")
    if wrong:
        raise _error(config, named, wrong)
    return OwnTable(config, tuple(names), row_of, values, unread)


def _refuse_columns(source: Source, config: FeatureTable, named: str) -> None:
    """Raise TableError unless the key is there, and the other columns can be numbers."""
    wrong = []
    names = [name for name in source.columns if name != config.key]
    if config.key not in source.columns:
        known = f"; it has {', '.join(names[:8])}, ..."
        wrong.append(f"key '{config.key}' is missing{nearest(config.key, names) or known}")
    elif not source.is_key(config.key):
        wrong.append(f"key '{config.key}' has type {source.columns[config.key]}, expected text")
    if source.twice:
        wrong.append(f"columns appear more than once: {', '.join(source.twice[:MOST_NAMED])}")
    if not names:
        wrong.append("there is no column beside the key")
    if source.ragged:
        rows = rows_text(list(source.ragged)[:MOST_NAMED], len(source.ragged))
        wrong.append(f"{rows}: too many or too few cells")
    other = [name for name in names if not source.is_number(name)]
    if other and config.key in source.columns:
        wrong.append(_not_numbers(other))
    if wrong:
        raise _error(config, named, wrong)


def _garbled(frame: pl.DataFrame, names: Sequence[str], config: FeatureTable) -> list[str]:
    """Return a line on columns with cells that are no numbers."""
    other = [name for k, name in enumerate(names) if frame[f"garbled:{k}"].any()]
    if not other:
        return []
    first = frame[f"garbled:{names.index(other[0])}"].arg_true().to_list()
    return [f"{_not_numbers(other)}; '{other[0]}' in {rows_text(first[:MOST_NAMED], len(first))}"]


def _not_numbers(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MOST_NAMED])
    more = ", ..." if len(names) > MOST_NAMED else ""
    return (
        f"{count_of(len(names), 'column')} not of numbers: {shown}{more}; take them away, or write"
        " them as numbers"
    )


def _without_key(keys: Sequence[str | None]) -> list[str]:
    rows = [row for row, key in enumerate(keys) if key is None]
    return [f"{rows_text(rows[:MOST_NAMED], len(rows))}: without a key"] if rows else []


def _prepared(keys: Sequence[str], column: StringColumn) -> tuple[dict[str, str], dict[str, str]]:
    """Return the keys with the strings that they prepare to, and those that do not with why."""
    prepared, unread = {}, {}
    bar = tqdm(keys, desc=f"features of {column.name}", disable=None if len(keys) > MANY else True)
    for key in bar:
        try:
            prepared[key] = prepare_string(key, column)
        except ValueError as reason:
            unread[key] = str(reason)
    return prepared, unread


def _rows_of(
    keys: Sequence[str | None], prepared: Mapping[str, str], values: Float32[np.ndarray, "R K"]
) -> tuple[dict[str, int], list[str]]:
    """Return the first row of each string, and the strings whose rows differ."""
    row_of: dict[str, int] = {}
    different: dict[str, None] = {}
    for row, key in enumerate(keys):
        if key is None or key not in prepared:
            continue
        text = prepared[key]
        first = row_of.setdefault(text, row)
        if not np.array_equal(values[first], values[row], equal_nan=True):
            different[text] = None
    return row_of, list(different)


def _error(config: FeatureTable, named: str, wrong: Sequence[str]) -> TableError:
    lines = "\n".join(f"  - {line}" for line in wrong)
    return TableError(
        f"{config.table} ({named}) is no table of features, one row per string (rows are counted"
        f" from 0, without the header):\n{lines}"
    )
