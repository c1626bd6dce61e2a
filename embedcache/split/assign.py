"""Dealing the rows of a table to splits: the bridge from `table` (what values there are) to
`splits` (which of them go where).

Whatever the strategy, the outcome is one small array of split codes over the values of one
canonical column, or over the rows themselves; the split of a block of rows is a lookup. One pass
over the few columns that matter counts what each split got, before anything expensive begins.

A file that is appended changes nothing for the rows before it: a group or left-out string that they
have keeps its split, and what is new is dealt as a first file's is, among itself; or, where it is
fewer than the folds, to the splits that are furthest below their share.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int8, Int64

from embedcache.config import SPLITS, DataConfig, SplitConfig, TargetColumn
from embedcache.errors import ConfigError
from embedcache.split.folds import assign_few, assign_groups, assign_rows
from embedcache.split.tally import SplitTally
from embedcache.table.table import Table

ROWS_PER_BLOCK = 1 << 19


@dataclass(frozen=True)
class Assignment:
    """The split of every row of a file, by the place of its value in column `key`, or by its own
    place if `key` is None.
    """

    key: str | None
    codes: Int8[np.ndarray, " K"]

    def of(self, block: pl.DataFrame, start: int) -> Int8[np.ndarray, " N"]:
        """Return the splits of a block of rows, of which the first is row `start` of the file."""
        return (
            self.codes[start : start + block.height]
            if self.key is None
            else self.codes[block[self.key].to_numpy()]
        )


def assign_splits(
    table: Table, data: DataConfig, split: SplitConfig, tally: SplitTally
) -> Assignment:
    """Return the split of every row of a file, given what was counted in the files before it;
    raises SplitError where a first file cannot be dealt.

    The tally has room for the file's names; it is read here, and counted on by `count`.
    """
    if split.strategy == "column":
        return Assignment("split", np.arange(len(SPLITS), dtype=np.int8))
    if split.strategy == "random":
        few = table.first_row and table.num_rows < split.folds
        ones = np.ones(table.num_rows, dtype=np.int64)
        return Assignment(
            None,
            (
                assign_few(ones, tally.rows.sum(1), split)
                if few
                else assign_rows(_row_labels(table, split), split, table.first_row)
            ),
        )
    if split.strategy == "leave_strings_out":
        column = left_out_column(data, split)
        strings, spellings = table.strings[column], table.spellings[column]
        counts = np.zeros((len(strings.text), spellings.counts.shape[1]), dtype=np.int64)
        np.add.at(counts, strings.id_of_spelling, spellings.counts)
        rows = tally.rows.sum(1, keepdims=True)
        codes = _deal_new(
            counts,
            np.zeros(len(counts), dtype=np.int64),
            tally.string_in[column],
            rows,
            split,
            f"distinct {column} string",
            (),
        )
        return Assignment(f"string:{column}", codes[strings.id_of_spelling])
    if table.groups is None:
        raise ConfigError(
            "split.strategy 'group' needs data.group, the column whose values must not straddle"
            " splits"
        )
    return Assignment(
        "group",
        _deal_new(
            table.groups.counts,
            table.groups.stratum,
            tally.group_in,
            tally.rows,
            split,
            "group",
            table.strata,
        ),
    )


def count_rows(tally: SplitTally, table: Table, dealt: Assignment) -> None:
    """Count what the rows of one file bring to each split."""
    columns = [f"string:{name}" for name in table.strings] + [
        f"target:{target.name}" for target in table.targets
    ]
    columns += ["group", "stratum", "split"]
    start = 0
    for block in table.blocks([name for name in columns if name in table.columns], ROWS_PER_BLOCK):
        none = np.zeros(block.height, dtype=np.int32)
        tally.add(
            dealt.of(block, start),
            block["stratum"].to_numpy() if table.strata else none,
            block["group"].to_numpy() if table.groups else none,
            {
                name: strings.id_of_spelling[block[f"string:{name}"].to_numpy()]
                for name, strings in table.strings.items()
            },
            labels_of(block, table.targets),
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
    if split.string is not None and split.string not in names:
        raise ConfigError(
            f"split.string names '{split.string}', which is not among the string columns:"
            f" {', '.join(names)}"
        )
    return split.string or names[0]


def _deal_new(
    counts: Int64[np.ndarray, "G K"],
    stratum: Int64[np.ndarray, " G"],
    seen: Bool[np.ndarray, "3 G"],
    rows: Int64[np.ndarray, "3 Q"],
    split: SplitConfig,
    what: str,
    strata: tuple[str, ...],
) -> Int8[np.ndarray, " G"]:
    """Return the split of each group: that in which it was `seen` in the files before, of which
    each split holds `rows` by stratum, or a new one.
    """
    codes, known = seen.argmax(0).astype(np.int8), seen.any(0)
    if not known.any():
        return assign_groups(counts, stratum, split, what, strata)
    for value in np.unique(stratum[~known]):
        members = np.flatnonzero(~known & (stratum == value))
        if len(members) >= split.folds:
            codes[members] = assign_groups(counts[members], stratum[members], split, what, strata)
            continue
        placed, mates = rows[:, value].copy(), np.flatnonzero(known & (stratum == value))
        # the rows that this very file brings to known groups
        np.add.at(placed, codes[mates], counts[mates].sum(1))
        codes[members] = assign_few(counts[members].sum(1), placed, split)
    return codes


def _row_labels(table: Table, split: SplitConfig) -> Int8[np.ndarray, " N"]:
    """Return the stratifying label of every row: 0, 1, or 2 where unobserved; all zero without
    `stratify_by`.
    """
    labels = np.zeros(table.num_rows, dtype=np.int8)
    name = next(
        (target.name for target in table.targets if target.column == split.stratify_by), None
    )
    if name is None or f"target:{name}" not in table.columns:
        return labels
    start = 0
    for block in table.blocks([f"target:{name}"], ROWS_PER_BLOCK):
        labels[start : start + block.height] = (
            block[f"target:{name}"].fill_null(2).to_numpy().astype(np.int8)
        )
        start += block.height
    return labels
