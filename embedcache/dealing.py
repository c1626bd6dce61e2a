"""Dealing the rows of a table to splits: the bridge from `table` (what values there are) to `splits` (which of them go where).

Whatever the strategy, the outcome is one small array of split codes over the values of one canonical column, or over the rows themselves; the split
of a block of rows is a lookup. One pass over the few columns that matter counts what each split got, before anything expensive begins.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int8

from embedcache.config import DataConfig, SplitConfig
from embedcache.errors import ConfigError
from embedcache.splits import SPLITS, SplitReport, SplitTally, deal_groups, deal_rows
from embedcache.table import Table

ROWS_PER_BLOCK = 1 << 19


@dataclass(frozen=True)
class Deal:
    """The split of every row, by the place of its value in column `key`, or by its own place if `key` is None."""

    key: str | None
    codes: Int8[np.ndarray, " K"]

    def of(self, block: pl.DataFrame, start: int) -> Int8[np.ndarray, " N"]:
        """Return the splits of a block of rows, of which the first is row `start` of the table."""
        return self.codes[start : start + block.height] if self.key is None else self.codes[block[self.key].to_numpy()]


def deal(table: Table, data: DataConfig, split: SplitConfig) -> tuple[Deal, SplitReport]:
    """Return the split of every row and what each split holds; raises SplitError where the split is unusable."""
    left_out = _left_out(data, split) if split.strategy == "leave_strings_out" else None
    dealt = _deal(table, split, left_out)
    tally = SplitTally(
        strata=table.strata,
        num_groups=0 if table.groups is None else len(table.groups.values),
        num_strings={name: len(strings.text) for name, strings in table.strings.items()},
        targets=tuple(target.name for target in table.targets),
        binary=tuple(target.kind == "binary" for target in table.targets),
    )
    columns = [f"string:{name}" for name in table.strings] + [f"target:{target.name}" for target in table.targets]
    columns += [name for name, present in (("group", table.groups), ("stratum", table.strata), ("split", split.strategy == "column")) if present]
    start = 0
    for block in table.blocks(columns, ROWS_PER_BLOCK):
        codes = dealt.of(block, start)
        none = np.zeros(block.height, dtype=np.int32)
        tally.add(
            codes,
            block["stratum"].to_numpy() if table.strata else none,
            block["group"].to_numpy() if table.groups else none,
            {name: strings.id_of_spelling[block[f"string:{name}"].to_numpy()] for name, strings in table.strings.items()},
            labels_of(block, table),
        )
        start += block.height
    tally.check(split.strategy, left_out)
    return dealt, tally.report()


def labels_of(block: pl.DataFrame, table: Table) -> np.ndarray:
    """Return the labels of a block, [N, T] float32 with NaN where unobserved."""
    labels = np.empty((block.height, len(table.targets)), dtype=np.float32)
    for t, target in enumerate(table.targets):
        labels[:, t] = block[f"target:{target.name}"].fill_null(float("nan")).to_numpy()
    return labels


def _left_out(data: DataConfig, split: SplitConfig) -> str:
    """Return the string column whose strings are left out."""
    names = [column.name for column in data.strings]
    if split.string is not None and split.string not in names:
        raise ConfigError(f"split.string names '{split.string}', which is not among the string columns: {', '.join(names)}")
    return split.string or names[0]


def _deal(table: Table, split: SplitConfig, left_out: str | None) -> Deal:
    if split.strategy == "column":
        return Deal("split", np.arange(len(SPLITS), dtype=np.int8))
    if split.strategy == "random":
        return Deal(None, deal_rows(_row_labels(table, split), split))
    if left_out is not None:
        strings, spellings = table.strings[left_out], table.spellings[left_out]
        counts = np.zeros((len(strings.text), spellings.counts.shape[1]), dtype=np.int64)
        np.add.at(counts, strings.id_of_spelling, spellings.counts)
        codes = deal_groups(counts, np.zeros(len(counts), dtype=np.int64), split, f"distinct {left_out} string", ())
        return Deal(f"string:{left_out}", codes[strings.id_of_spelling])
    if table.groups is None:
        raise ConfigError("split.strategy 'group' needs data.group, the column whose values must not straddle splits")
    return Deal("group", deal_groups(table.groups.counts, table.groups.stratum, split, "group", table.strata))


def _row_labels(table: Table, split: SplitConfig) -> Int8[np.ndarray, " N"]:
    """Return the stratifying label of every row: 0, 1, or 2 where unobserved; all zero without `stratify_by`."""
    labels = np.zeros(table.num_rows, dtype=np.int8)
    name = next((target.name for target in table.targets if target.column == split.stratify_by), None)
    if name is None:
        return labels
    start = 0
    for block in table.blocks([f"target:{name}"], ROWS_PER_BLOCK):
        labels[start : start + block.height] = block[f"target:{name}"].fill_null(2).to_numpy().astype(np.int8)
        start += block.height
    return labels
