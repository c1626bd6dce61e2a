"""A table that grows: its files in order, each read with the vocabularies of those before it.

Building a cache of several files is building one of the first file and appending the others to it;
both are done here. So an appended cache equals, bit for bit, one that is built from all files at
once, and what was trained on the rows before can be continued: they keep their order, their string
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
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.split.assign import (
    ROWS_PER_BLOCK,
    Assignment,
    assign_splits,
    count_rows,
)
from embedcache.split.plan import left_out_column, num_folds_of
from embedcache.split.tally import SplitTally
from embedcache.table.read import read_table
from embedcache.table.survey import Judge
from embedcache.table.table import Table
from embedcache.table.vocabulary import NO_VOCABULARIES, Vocabularies

NO_ROWS = SplitTally((), 0, {}, (), ())  # never counted on: `grown` returns another


@dataclass(frozen=True)
class TableFile:
    """One file, and the split of each of its rows."""

    table: Table
    splits: Assignment


@dataclass(frozen=True)
class TableFiles:
    """The files whose rows a new cache is to hold, at least one.

    They follow the rows of `base`, the cache that is appended to, if there is one.
    """

    base: Cache | None
    files: tuple[TableFile, ...]
    tally: SplitTally

    @property
    def last(self) -> Table:
        """The last file, whose vocabularies are those of all files."""
        return self.files[-1].table

    @property
    def num_rows(self) -> int:
        """N, the rows of `base` and of all files."""
        return self.last.vocabularies.num_rows

    def num_strings(self, name: str) -> list[int]:
        """Return how many strings of a column are known before the first file, and after each."""
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
            yield from row_blocks(file.table, data, file.splits, targets, num_rows)


def read_files(
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    base: Cache | None,
    judge: Judge | None = None,
) -> TableFiles:
    """Return the files that `base` does not have, all where there is none, assigned to splits.

    Raises TableError for the first file that breaks the config, SplitError where the outcome is
    unusable.
    """
    known = NO_VOCABULARIES if base is None else vocabularies_of(base)
    tally = NO_ROWS if base is None else tally_of(base, num_folds_of(split, base.layout.folds))
    files = []
    for file in data.files[0 if base is None else len(base.identity.files) :]:
        table = read_table(file, data, targets, split, known, judge)
        known = table.vocabularies
        num_strings = {name: len(texts) for name, texts in known.strings.items()}
        tally = tally.grown(
            known.strata,
            len(known.groups),
            num_strings,
            table.targets,
            num_folds_of(split, table.folds),
        )
        splits = assign_splits(table, data, split, tally)
        count_rows(tally, table, splits)
        files.append(TableFile(table, splits))
    left_out = left_out_column({column.name: column.kind for column in data.strings}, split)
    tally.check(split.strategy, left_out, known.groups)
    return TableFiles(base, tuple(files), tally)


def vocabularies_of(cache: Cache) -> Vocabularies:
    """Return the names in a cache, as its last file left them for the next."""
    layout = cache.layout
    stratum = np.zeros(len(layout.groups), dtype=np.int64)
    if layout.groups and layout.strata:
        for block in _blocks_of(cache):
            stratum[block.group] = block.stratum
    return Vocabularies(
        num_rows=layout.num_rows,
        targets=frozenset(target.name for target in layout.targets),
        classes={t.name: t.classes for t in layout.targets if t.has_codes and t.classes},
        strings={spec.name: tuple(cache.strings(spec.name).text) for spec in layout.strings},
        categories=dict(layout.categories),
        facets=dict(layout.facets),
        strata=layout.strata,
        groups=layout.groups,
        group_stratum=tuple(stratum.tolist()),
        folds=layout.folds,
    )


def tally_of(cache: Cache, num_folds: int) -> SplitTally:
    """Return what the splits and folds of a cache hold, counted row by row."""
    layout = cache.layout
    num_strings = {spec.name: spec.num_strings for spec in layout.strings}
    tally = NO_ROWS.grown(layout.strata, len(layout.groups), num_strings, layout.targets, num_folds)
    for block in _blocks_of(cache):
        stratum = np.maximum(block.stratum, 0)
        strings = {
            spec.name: block.string_id[:, column] for column, spec in enumerate(layout.strings)
        }
        tally.add(block.split, block.fold, stratum, block.group, strings, block.targets)
    return tally


def _blocks_of(cache: Cache) -> Iterator[RowBlock]:
    for start in range(0, cache.layout.num_rows, ROWS_PER_BLOCK):
        yield cache.rows(start, min(start + ROWS_PER_BLOCK, cache.layout.num_rows))
