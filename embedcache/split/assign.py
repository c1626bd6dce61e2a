"""Assigning rows to splits: from what values a table has to which of them go where.

Whatever the strategy, the outcome is one small array of split codes over the values of one
canonical column, or over the rows themselves; the split of a block of rows is a lookup. One pass
over the few columns that matter counts what each split got, before anything expensive begins.

A file that is appended changes nothing for the rows before it: a group or left-out string that they
have keeps its split. What is new is assigned as in a first file, among itself; or, where it is
fewer than the folds, to the splits that are furthest below their share.

Axes: N rows, G groups, K classes of the stratifying label, Q strata.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int64

from embedcache.config.split import SPLITS, SplitConfig
from embedcache.config.table import DataConfig, TargetColumn
from embedcache.errors import ConfigError
from embedcache.split.folds import assign_few, assign_groups, assign_rows
from embedcache.split.tally import SplitTally
from embedcache.table.table import Table

ROWS_PER_BLOCK = 1 << 19


@dataclass(frozen=True)
class Assignment:
    """The split of every row of a file, by the code of its value in one column, or row by row."""

    key: str | None  # the canonical column; None: `codes` has an entry per row
    codes: Int8[np.ndarray, " values"]

    def of(self, block: pl.DataFrame, start: int) -> Int8[np.ndarray, " N"]:
        """Return the splits of a block of rows, of which the first is row `start` of the file."""
        if self.key is None:
            return self.codes[start : start + block.height]
        return self.codes[block[self.key].to_numpy()]


def assign_splits(
    table: Table, data: DataConfig, split: SplitConfig, tally: SplitTally
) -> Assignment:
    """Return the split of every row of a file, given what was counted in the files before it.

    The tally has room for the file's names; it is read here, and counted on by `count_rows`. Raises
    SplitError where a first file has too little to assign.
    """
    match split.strategy:
        case "column":
            return Assignment("split", np.arange(len(SPLITS), dtype=np.int8))
        case "random":
            return _assigned_by_row(table, split, tally)
        case "leave_strings_out":
            return _assigned_by_string(table, split, tally, left_out_column(data, split))
        case "group":
            return _assigned_by_group(table, split, tally)


def count_rows(tally: SplitTally, table: Table, assignment: Assignment) -> None:
    """Count what the rows of one file bring to each split."""
    strings = [f"string:{name}" for name in table.strings]
    targets = [f"target:{target.name}" for target in table.targets]
    columns = [*strings, *targets, "group", "stratum", "split"]
    start = 0
    for block in table.blocks([name for name in columns if name in table.columns], ROWS_PER_BLOCK):
        none = np.zeros(block.height, dtype=np.int32)
        tally.add(
            split=assignment.of(block, start),
            stratum=block["stratum"].to_numpy() if table.strata else none,
            group=block["group"].to_numpy() if table.groups else none,
            strings={
                name: strings.id_of_spelling[block[f"string:{name}"].to_numpy()]
                for name, strings in table.strings.items()
            },
            targets=labels_of(block, table.targets),
        )
        start += block.height


def labels_of(block: pl.DataFrame, targets: tuple[TargetColumn, ...]) -> Float32[np.ndarray, "N T"]:
    """Return the labels of a block, NaN where unobserved, as in a file without the column."""
    labels = np.full((block.height, len(targets)), np.nan, dtype=np.float32)
    for t, target in enumerate(targets):
        if f"target:{target.name}" in block.columns:
            labels[:, t] = block[f"target:{target.name}"].fill_null(float("nan")).to_numpy()
    return labels


def left_out_column(data: DataConfig, split: SplitConfig) -> str:
    """Return the string column whose strings are left out."""
    names = [column.name for column in data.strings]
    if not names:
        raise ConfigError(
            "split.strategy 'leave_strings_out' needs a column in data.strings, which has none;"
            " choose another strategy"
        )
    if split.string is not None and split.string not in names:
        raise ConfigError(
            f"split.string names '{split.string}', which is not among the string columns:"
            f" {', '.join(names)}"
        )
    return split.string or names[0]


def _assigned_by_row(table: Table, split: SplitConfig, tally: SplitTally) -> Assignment:
    """Return the splits of rows that are assigned each for itself."""
    if table.first_row and table.num_rows < split.folds:
        ones = np.ones(table.num_rows, dtype=np.int64)
        return Assignment(None, assign_few(ones, tally.rows.sum(1), split))
    return Assignment(None, assign_rows(_row_labels(table, split), split, table.first_row))


def _assigned_by_string(
    table: Table, split: SplitConfig, tally: SplitTally, column: str
) -> Assignment:
    """Return the splits of rows whose distinct strings of a column are the groups."""
    strings, spellings = table.strings[column], table.spellings[column]
    counts = np.zeros((len(strings.text), spellings.counts.shape[1]), dtype=np.int64)  # [S, K]
    np.add.at(counts, strings.id_of_spelling, spellings.counts)
    codes = _with_new(
        counts,
        stratum=np.zeros(len(counts), dtype=np.int64),
        seen=tally.string_in[column],
        rows=tally.rows.sum(1, keepdims=True),
        split=split,
        what=f"distinct {column} string",
        strata=(),
    )
    return Assignment(f"string:{column}", codes[strings.id_of_spelling])


def _assigned_by_group(table: Table, split: SplitConfig, tally: SplitTally) -> Assignment:
    """Return the splits of rows whose groups must not straddle."""
    if table.groups is None:
        raise ConfigError(
            "split.strategy 'group' needs data.group, the column whose values must not straddle"
            " splits"
        )
    codes = _with_new(
        table.groups.counts,
        stratum=table.groups.stratum,
        seen=tally.group_in,
        rows=tally.rows,
        split=split,
        what="group",
        strata=table.strata,
    )
    return Assignment("group", codes)


def _with_new(
    counts: Int64[np.ndarray, "G K"],
    stratum: Int64[np.ndarray, " G"],
    seen: Bool[np.ndarray, "3 G"],
    rows: Int64[np.ndarray, "3 Q"],
    split: SplitConfig,
    what: str,
    strata: tuple[str, ...],
) -> Int8[np.ndarray, " G"]:
    """Return the split of each group: that in which it was `seen` before, or a new one.

    `counts` are the groups' rows in this file by class, `rows` those that each split holds of the
    files before, by stratum.
    """
    codes, known = seen.argmax(0).astype(np.int8), seen.any(0)
    if not known.any():
        return assign_groups(counts, stratum, split, what, strata)
    for value in np.unique(stratum[~known]):
        inside = stratum == value
        new = np.flatnonzero(~known & inside)
        if len(new) >= split.folds:
            codes[new] = assign_groups(counts[new], stratum[new], split, what, strata)
            continue
        held, old = rows[:, value].copy(), np.flatnonzero(known & inside)
        # the rows that this very file brings to known groups
        np.add.at(held, codes[old], counts[old].sum(1))
        codes[new] = assign_few(counts[new].sum(1), held, split)
    return codes


def _row_labels(table: Table, split: SplitConfig) -> Int8[np.ndarray, " N"]:
    """Return the stratifying label of every row: 0, 1, or 2 where unobserved.

    All are zero without `stratify_by`.
    """
    labels = np.zeros(table.num_rows, dtype=np.int8)
    targets = [target.name for target in table.targets if target.column == split.stratify_by]
    if not targets or f"target:{targets[0]}" not in table.columns:
        return labels
    column, start = f"target:{targets[0]}", 0
    for block in table.blocks([column], ROWS_PER_BLOCK):
        found = block[column].fill_null(2).to_numpy().astype(np.int8)
        labels[start : start + block.height] = found
        start += block.height
    return labels
