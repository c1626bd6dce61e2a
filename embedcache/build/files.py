"""A table that grows: its files one after another, each read with the names, groups and strings of
those before it.

Building a cache of several files is building one of the first file and appending the others to it,
in this one place. So an appended cache equals, bit for bit, one that is built from all files at
once, and what was trained on the rows before can be continued: they keep their place, their string
ids, their codes and their split. What the files so far leave for the next is names (`Vocabularies`)
and counts (`SplitTally`); both can be read from a cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from embedcache.build.blocks import reblocked, row_blocks
from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config import DataConfig, SplitConfig, TargetColumn
from embedcache.split.assign import Assignment, assign_splits, count_rows, left_out_column
from embedcache.split.tally import SplitTally
from embedcache.table.read import read_table
from embedcache.table.table import Table
from embedcache.table.vocabulary import NO_VOCABULARIES, Vocabularies

ROWS_PER_BLOCK = 1 << 19


@dataclass(frozen=True)
class TableFile:
    """One file, and where its rows go."""

    table: Table
    dealt: Assignment


@dataclass(frozen=True)
class TableFiles:
    """The rows of a cache that is appended to, if any, and the files whose rows follow them; there
    is at least one.
    """

    base: Cache | None
    files: tuple[TableFile, ...]
    tally: SplitTally

    @property
    def last(self) -> Table:
        """The last file, which knows the names in all of them."""
        return self.files[-1].table

    @property
    def num_rows(self) -> int:
        """N."""
        return self.last.vocabularies.num_rows

    def num_strings(self, name: str) -> list[int]:
        """Return how many distinct strings of a column are known in front of the first file, and
        after each.
        """
        before = 0 if self.base is None else self.base.layout.strings_of(name).num_strings
        return [before, *(len(file.table.strings[name].text) for file in self.files)]

    def rows_of_strings(self, name: str) -> Int64[np.ndarray, " S"]:
        """Return the number of rows of each distinct string of a column."""
        total = np.zeros(len(self.last.strings[name].text), dtype=np.int64)
        for file in self.files:
            found = file.table.strings[name].num_rows
            total[: len(found)] += found
        if self.base is not None:
            before = self.base.strings(name).num_rows.numpy()
            total[: len(before)] += before
        return total

    def rows(self, data: DataConfig, num_rows: int) -> Iterator[RowBlock]:
        """Yield all rows in order, `num_rows` at a time."""
        return reblocked(self._blocks(data, num_rows), num_rows)

    def _blocks(self, data: DataConfig, num_rows: int) -> Iterator[RowBlock]:
        targets = self.last.targets
        if self.base is not None:
            layout = self.base.layout
            for start in range(0, layout.num_rows, num_rows):
                block = self.base.rows(start, min(start + num_rows, layout.num_rows))
                yield block.with_targets(targets, layout.targets)
        for file in self.files:
            yield from row_blocks(file.table, data, file.dealt, targets, num_rows)


def read_files(
    data: DataConfig, targets: tuple[TargetColumn, ...], split: SplitConfig, base: Cache | None
) -> TableFiles:
    """Return the files that `base` does not have, or all of them where there is none, dealt to
    splits.

    Raises TableError for the first file that breaks the config, SplitError where the outcome is
    unusable.
    """
    known, tally, done = NO_VOCABULARIES, SplitTally((), 0, {}, (), ()), 0
    if base is not None:
        known, tally = names_of(base), tally_of(base)
        done = len(base.identity.files)
    files = []
    for file in data.files[done:]:
        table = read_table(file, data, targets, split, known)
        known = table.vocabularies
        num_strings = {name: len(texts) for name, texts in known.strings.items()}
        tally = tally.grown(known.strata, len(known.groups), num_strings, table.targets)
        dealt = assign_splits(table, data, split, tally)
        count_rows(tally, table, dealt)
        files.append(TableFile(table, dealt))
    tally.check(
        split.strategy,
        left_out_column(data, split) if split.strategy == "leave_strings_out" else None,
    )
    return TableFiles(base, tuple(files), tally)


def names_of(cache: Cache) -> Vocabularies:
    """Return the names in a cache, as its last file left them for the next."""
    layout = cache.layout
    stratum = np.zeros(len(layout.groups), dtype=np.int64)
    if layout.groups and layout.strata:
        for block in _blocks_of(cache):
            stratum[block.group] = block.stratum
    return Vocabularies(
        num_rows=layout.num_rows,
        targets=frozenset(target.name for target in layout.targets),
        strings={spec.name: tuple(cache.strings(spec.name).text) for spec in layout.strings},
        categories=dict(layout.categories),
        facets=dict(layout.facets),
        strata=layout.strata,
        groups=layout.groups,
        group_stratum=tuple(stratum.tolist()),
    )


def tally_of(cache: Cache) -> SplitTally:
    """Return what the splits of a cache hold, counted row by row."""
    layout = cache.layout
    num_strings = {spec.name: spec.num_strings for spec in layout.strings}
    tally = SplitTally((), 0, {}, (), ()).grown(
        layout.strata, len(layout.groups), num_strings, layout.targets
    )
    for block in _blocks_of(cache):
        stratum = np.maximum(block.stratum, 0)
        strings = {
            spec.name: block.string_id[:, column] for column, spec in enumerate(layout.strings)
        }
        tally.add(block.split, stratum, block.group, strings, block.targets)
    return tally


def _blocks_of(cache: Cache) -> Iterator[RowBlock]:
    for start in range(0, cache.layout.num_rows, ROWS_PER_BLOCK):
        yield cache.rows(start, min(start + ROWS_PER_BLOCK, cache.layout.num_rows))
