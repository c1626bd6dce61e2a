"""Assigning rows to splits: from what values a table has to which of them go where.

Whatever the strategy, the outcome is one small array of folds over the values of one canonical
column, or over the rows themselves; the fold of a block of rows is a lookup, and which split a fold
is in depends on the rotation alone. One pass over the few columns that matter counts what each
split got, before anything expensive begins.

A file that is appended changes nothing for the rows before it: a group or left-out string that they
have keeps its fold. What is new is assigned as in a first file, among itself; or, where it is fewer
than the folds, to the splits that are furthest below their share. Times cannot be appended to.

Axes: N rows, G groups, K classes of the stratifying label, Q strata.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32, Int8, Int16, Int64

from embedcache.config.split import SPLITS, FoldPlan, SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError, SplitError
from embedcache.split.folds import (
    assign_few,
    assign_groups,
    assign_rows,
    assign_times,
    split_of_fold,
)
from embedcache.split.plan import left_out_column, plan_of
from embedcache.split.scaffold import scaffold_groups
from embedcache.split.tally import NO_FOLD, SplitTally
from embedcache.table.counting import count_times
from embedcache.table.table import Table

ROWS_PER_BLOCK = 1 << 19


@dataclass(frozen=True)
class Assignment:
    """The fold of every row of a file, by the code of its value in one column, or row by row."""

    key: str | None  # the canonical column; None: `folds` has an entry per row
    folds: Int16[np.ndarray, " values"]  # NO_FOLD: the value is the code of a split itself
    split_of_fold: Int8[np.ndarray, " folds"]

    def of(
        self, block: pl.DataFrame, start: int
    ) -> tuple[Int8[np.ndarray, " N"], Int16[np.ndarray, " N"]]:
        """Return the splits and folds of a block of rows, the first being row `start`."""
        if self.key is None:
            fold = self.folds[start : start + block.height]
            return self.split_of_fold[fold], fold
        codes = block[self.key].to_numpy()
        fold = self.folds[codes]
        split = codes.astype(np.int8) if self.key == "split" else self.split_of_fold[fold]
        return split, fold


def assign_splits(
    table: Table, data: DataConfig, split: SplitConfig, tally: SplitTally
) -> Assignment:
    """Return the split of every row of a file, given what was counted in the files before it.

    The tally has room for the file's names; it is read here, and counted on by `count_rows`. Raises
    SplitError where a first file has too little to assign, or where a further one cannot follow.
    """
    plan = plan_of(split, table.folds)
    key, folds = _folds(table, data, split, plan, tally)
    return Assignment(key, folds, split_of_fold(np.arange(plan.folds), plan))


def _folds(
    table: Table, data: DataConfig, split: SplitConfig, plan: FoldPlan, tally: SplitTally
) -> tuple[str | None, Int16[np.ndarray, " values"]]:
    """Return the column that decides, and the fold of each of its values, or of each row."""
    match split.strategy:
        case "column":
            return "split", np.full(len(SPLITS), NO_FOLD, dtype=np.int16)
        case "folds":
            return "fold", np.arange(plan.folds, dtype=np.int16)
        case "random":
            return None, _by_row(table, split, plan, tally)
        case "time":
            return None, _by_time(table, plan)
        case "leave_strings_out" | "scaffold":
            column = left_out_column({each.name: each.kind for each in data.strings}, split)
            assert column is not None
            return f"string:{column}", _by_string(table, split, plan, tally, column)
        case "group":
            return "group", _by_group(table, plan, tally)


def count_rows(tally: SplitTally, table: Table, assignment: Assignment) -> None:
    """Count what the rows of one file bring to each split."""
    strings = [f"string:{name}" for name in table.strings]
    targets = [f"target:{target.name}" for target in table.targets]
    columns = [*strings, *targets, "group", "stratum", "split", "fold"]
    start = 0
    for block in table.blocks([name for name in columns if name in table.columns], ROWS_PER_BLOCK):
        none = np.zeros(block.height, dtype=np.int32)
        split, fold = assignment.of(block, start)
        tally.add(
            split=split,
            fold=fold,
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


def _by_row(
    table: Table, split: SplitConfig, plan: FoldPlan, tally: SplitTally
) -> Int16[np.ndarray, " N"]:
    """Return the folds of rows that are assigned each for itself."""
    if table.first_row and table.num_rows < plan.folds:
        ones = np.ones(table.num_rows, dtype=np.int64)
        return assign_few(ones, tally.fold_rows.sum(1), plan)
    return assign_rows(_row_labels(table, split), plan, table.first_row)


def _by_time(table: Table, plan: FoldPlan) -> Int16[np.ndarray, " N"]:
    """Return the folds of rows by when they are from; rows of one time are in one fold."""
    if table.first_row:
        raise SplitError(
            f"{table.path} cannot follow other files: split.strategy 'time' divides one table, and"
            " rows that come later could be older than the test rows. Join the files into one"
            " table, name that as data.path, and build with --overwrite"
        )
    times = count_times(table.frame)
    distinct, folds = times["time"].to_numpy(), assign_times(times["rows"].to_numpy(), plan)
    found = np.empty(table.num_rows, dtype=np.int16)
    start = 0
    for block in table.blocks(["time"], ROWS_PER_BLOCK):
        places = np.searchsorted(distinct, block["time"].to_numpy())
        found[start : start + block.height] = folds[places]
        start += block.height
    return found


def _by_string(
    table: Table, split: SplitConfig, plan: FoldPlan, tally: SplitTally, column: str
) -> Int16[np.ndarray, " spellings"]:
    """Return the folds of spellings, whose distinct strings, or their scaffolds, are the groups."""
    strings, spellings = table.strings[column], table.spellings[column]
    what, group = f"distinct {column} string", np.arange(len(strings.text))
    if split.strategy == "scaffold":
        what, group = f"{column} scaffold", scaffold_groups(strings.text)
    num_groups = int(group.max(initial=-1)) + 1
    counts = np.zeros((num_groups, spellings.counts.shape[1]), dtype=np.int64)  # [G, K]
    np.add.at(counts, group[strings.id_of_spelling], spellings.counts)
    seen = np.full(num_groups, NO_FOLD, dtype=np.int16)
    np.maximum.at(seen, group, tally.string_fold[column])
    folds = _with_new(
        counts,
        stratum=np.zeros(num_groups, dtype=np.int64),
        seen=seen,
        rows=tally.fold_rows.sum(1, keepdims=True),
        plan=plan,
        what=what,
        strata=(),
    )
    return folds[group][strings.id_of_spelling]


def _by_group(table: Table, plan: FoldPlan, tally: SplitTally) -> Int16[np.ndarray, " G"]:
    """Return the folds of groups, which must not straddle."""
    if table.groups is None:
        raise ConfigError(
            "split.strategy 'group' needs data.group, the column whose values must not straddle"
            " splits"
        )
    return _with_new(
        table.groups.counts,
        stratum=table.groups.stratum,
        seen=tally.group_fold,
        rows=tally.fold_rows,
        plan=plan,
        what="group",
        strata=table.strata,
    )


def _with_new(
    counts: Int64[np.ndarray, "G K"],
    stratum: Int64[np.ndarray, " G"],
    seen: Int16[np.ndarray, " G"],
    rows: Int64[np.ndarray, "folds Q"],
    plan: FoldPlan,
    what: str,
    strata: tuple[str, ...],
) -> Int16[np.ndarray, " G"]:
    """Return the fold of each group: that in which it was `seen` before, or a new one.

    `counts` are the groups' rows in this file by class, `rows` those that each fold holds of the
    files before, by stratum.
    """
    folds, known = seen.copy(), seen != NO_FOLD
    if not known.any():
        return assign_groups(counts, stratum, plan, what, strata)
    for value in np.unique(stratum[~known]):
        inside = stratum == value
        new = np.flatnonzero(~known & inside)
        if len(new) >= plan.folds:
            folds[new] = assign_groups(counts[new], stratum[new], plan, what, strata)
            continue
        held, old = rows[:, value].copy(), np.flatnonzero(known & inside)
        # the rows that this very file brings to known groups
        np.add.at(held, folds[old], counts[old].sum(1))
        folds[new] = assign_few(counts[new].sum(1), held, plan)
    return folds


def _row_labels(table: Table, split: SplitConfig) -> Int16[np.ndarray, " N"]:
    """Return the stratifying label of every row: its class, or their number where unobserved.

    All are zero without `stratify_by`.
    """
    labels = np.zeros(table.num_rows, dtype=np.int16)
    targets = [target for target in table.targets if target.column == split.stratify_by]
    if not targets or f"target:{targets[0].name}" not in table.columns:
        return labels
    column, start = f"target:{targets[0].name}", 0
    num_classes = len(targets[0].classes or (0, 1))
    for block in table.blocks([column], ROWS_PER_BLOCK):
        found = block[column].fill_null(num_classes).to_numpy().astype(np.int16)
        labels[start : start + block.height] = found
        start += block.height
    return labels
