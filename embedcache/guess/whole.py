"""A config for a table that nobody has described: roles, reading, split, tried on all of its rows.

What is guessed is held to the table by the same functions that build a cache of it, so that a
config which is written from it is accepted as it stands: rows that break a rule are left out and
told, a split that cannot be made falls back to the next. The encoder alone is not tried here; a
`judge` says what it can read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from embedcache.build.files import TableFiles, read_files
from embedcache.config.split import SplitConfig
from embedcache.config.table import CsvConfig, DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import SplitError, TableError
from embedcache.guess.entries import Entry, Guess, Role
from embedcache.guess.profile import Profile, decimal_of, profiles
from embedcache.guess.roles import AS_NAMED, FEW, Named, guess_roles
from embedcache.schema import parse_config
from embedcache.table.reader import open_source
from embedcache.table.source import Source
from embedcache.table.survey import Judge
from embedcache.text import count_of

_LONGEST = 480  # characters of a string; polyBERT has positions for 512 tokens
_KEYS = {Role.STRING: "strings", Role.NUMERIC: "numeric", Role.CATEGORY: "categories"}


@dataclass(frozen=True)
class TableGuess:
    """What a table's columns are for, and how it is read and split."""

    path: Path
    num_rows: int  # that can be used
    columns: tuple[Guess, ...]  # in the table's order
    csv: Entry
    null_values: tuple[str, ...]
    split: Entry
    why_split: str
    num_distinct: dict[str, int]  # by string column's name: its distinct strings
    texts: dict[str, tuple[str, ...]] = field(repr=False)  # and they themselves
    rows_of_strings: dict[str, Int64[np.ndarray, " S"]] = field(repr=False)
    skips: bool = False  # whether rows that break a rule are left out
    remarks: tuple[str, ...] = ()  # on such rows, and on how the file is read

    def of(self, role: Role) -> list[Guess]:
        """Return the guesses of one role, in the table's order."""
        return [guess for guess in self.columns if guess.role is role]

    @property
    def data(self) -> Entry:
        """The config's `data`, but for its path."""
        data: Entry = {}
        if self.csv:
            data["csv"] = self.csv
        if self.null_values:
            data["null_values"] = list(self.null_values)
        if self.skips:
            data["on_invalid"] = "skip"
        for role, key in _KEYS.items():
            if found := self.of(role):
                data[key] = [guess.entry for guess in found]
        for guess in self.of(Role.GROUP):
            data["group"] = guess.column
        return data

    @property
    def tasks(self) -> list[Entry]:
        """The config's `tasks`."""
        return [guess.entry for guess in self.of(Role.TARGET)]


def guess_table(
    path: str | Path,
    named: Named | None = None,
    judge: Judge | None = None,
    split: Mapping[str, Any] | None = None,
) -> TableGuess:
    """Return the guess on the file at `path`, of which all rows were read.

    `split` are the keys of SplitConfig that are known.

    Raises TableError where the file cannot be read or used, ConfigError where a named column is
    missing or cannot be what it was named for, or where there is nothing to predict, SplitError
    where it has too few rows.
    """
    source, csv, remarks = _opened(Path(path))
    seen = list(profiles(source, csv.get("decimal", ".")))
    columns = guess_roles(seen, named or Named())
    draft = TableGuess(
        path=Path(path),
        num_rows=0,
        columns=tuple(columns),
        csv=csv,
        null_values=_null_values(seen, columns),
        split={},
        why_split="",
        num_distinct={},
        texts={},
        rows_of_strings={},
        skips=any(
            _has_faults(profile, guess) for profile, guess in zip(seen, columns, strict=True)
        ),
        remarks=remarks,
    )
    distinct = {profile.name: profile.num_distinct for profile in seen}
    failure: SplitError | None = None
    for tried, why in _splits(columns, distinct, dict(split or {})):
        if failure is not None:
            reason = str(failure).partition("\n")[0].partition(": ")[2]
            why = f"{why}; not by a better one: {reason}"
        try:
            return _tried(replace(draft, split=tried, why_split=why), judge)
        except SplitError as error:
            failure = failure or error
    assert failure is not None, "the last split is tried too"
    raise failure


def _opened(path: Path) -> tuple[Source, Entry, tuple[str, ...]]:
    """Return the file, how its text is written as far as that is to be said, and remarks on it."""
    csv: Entry = {}
    remarks: tuple[str, ...] = ()
    try:
        source = open_source(path, _reading(path, csv), "the table")
    except TableError as error:
        if "not UTF-8" not in str(error):
            raise
        csv["encoding"] = "cp1252"
        source = open_source(path, _reading(path, csv), "the table")
        remarks = ("the file is not UTF-8; it is read as cp1252, Windows' of Western Europe",)
    if decimal_of(source) == ",":
        csv["decimal"] = ","
        remarks = (*remarks, "numbers have decimal commas")
        source = open_source(path, _reading(path, csv), "the table")
    return source, csv, remarks


def _reading(path: Path, csv: Entry) -> DataConfig:
    """Return a config that says how a file is read, and nothing of its columns."""
    return DataConfig.model_construct(
        path=str(path), csv=parse_config(CsvConfig, csv, "data.csv"), null_values=()
    )


def _null_values(seen: Sequence[Profile], columns: Sequence[Guess]) -> tuple[str, ...]:
    """Return the cells of the columns in use that stand for a missing value."""
    used = [
        profile.marks
        for profile, guess in zip(seen, columns, strict=True)
        if guess.role is not Role.IGNORED
    ]
    return tuple(dict.fromkeys(mark for marks in used for mark in marks))


def _has_faults(profile: Profile, guess: Guess) -> bool:
    """Whether a column in use has cells that are known to break a rule."""
    too_long = guess.role is Role.STRING and any(len(each) > _LONGEST for each in profile.values)
    is_number = guess.role in (Role.NUMERIC, Role.TARGET)
    return too_long or (is_number and profile.num_garbled > 0)


def _splits(
    columns: Sequence[Guess], distinct: dict[str, int], known: Entry
) -> list[tuple[Entry, str]]:
    """Return the splits to try, the best first, each with its reason."""
    if "strategy" in known:
        return [(known, f"{known['strategy']}, as named")]
    found: list[tuple[Entry, str]] = []
    for guess in columns:
        if guess.role is Role.SPLIT:
            found.append((guess.entry, f"the table says so itself, in '{guess.column}'"))
    is_named = False
    for guess in columns:
        if guess.role is Role.GROUP:
            number = distinct[guess.column]
            folds = {"folds": number} if 3 <= number < FEW else {}
            by_group: Entry = {"strategy": "group", **folds}
            found.append((by_group, f"by '{guess.column}', of which rows are repeated"))
            is_named = guess.reason == AS_NAMED
    if not is_named:
        why = "rows at random: no column says what belongs together"
        found.append(({"strategy": "random"}, why))
    return [({**each, **known}, why) for each, why in found]


def _tried(draft: TableGuess, judge: Judge | None) -> TableGuess:
    """Return the guess with what all rows show; raises SplitError, TableError."""
    data = parse_config(DataConfig, {"path": str(draft.path), **draft.data}, str(draft.path))
    keys = set(TargetColumn.model_fields)
    targets = tuple(
        parse_config(TargetColumn, {key: task[key] for key in task if key in keys}, "tasks")
        for task in draft.tasks
    )
    split = parse_config(SplitConfig, draft.split, "split")
    try:
        files = read_files(data, targets, split, None, judge)
    except TableError:
        if draft.skips:
            raise
        return _tried(replace(draft, skips=True), judge)
    return _with_facts(draft, files)


def _with_facts(draft: TableGuess, files: TableFiles) -> TableGuess:
    table = files.last
    remarks = draft.remarks
    if table.num_invalid:
        left_out = count_of(table.num_invalid, "row")
        remarks = (*remarks, f"{left_out} break a rule and are left out:", *table.invalid)
    texts = {name: found.text for name, found in table.strings.items()}
    return replace(
        draft,
        num_rows=table.num_rows,
        skips=draft.skips and table.num_invalid > 0,
        num_distinct={name: len(found) for name, found in texts.items()},
        texts=texts,
        rows_of_strings={name: found.num_rows for name, found in table.strings.items()},
        remarks=remarks,
    )
