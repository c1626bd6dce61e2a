"""One file of a table, checked: what is in it, and its rows, block by block.

The rows themselves are never held: `Table.blocks` streams them, every text already replaced by its
code: its index among the values of its column, those of the files before in their order, then the
new ones, sorted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.errors import TableError
from embedcache.table.counting import Groups, ValueCounts
from embedcache.table.strings import DistinctStrings
from embedcache.table.vocabulary import Vocabularies, Vocabulary


@dataclass(frozen=True)
class Table:
    """A file that keeps to its config, and the names in it and in the files before it."""

    path: Path  # as messages name it
    frame: pl.LazyFrame  # canonical columns
    # their names; a target without a column here has no labels in this file
    columns: frozenset[str]
    first_row: int  # rows in the files before
    # whether any range of rows can be read alone: not from a CSV, nor where rows are left out
    in_slices: bool
    num_rows: int
    targets: tuple[TargetColumn, ...]
    absent_targets: tuple[str, ...]
    strings: dict[str, DistinctStrings]
    spellings: dict[str, ValueCounts]  # of each string column, as the table writes it
    categories: tuple[Vocabulary, ...]
    facets: tuple[Vocabulary, ...]
    strata: tuple[str, ...]
    groups: Groups | None
    folds: tuple[str, ...] = ()  # the table's own names of folds, in their order
    # by category column: the category of values that are not among its own
    others: Mapping[str, str] = field(default_factory=dict)
    # rows left out by data.exclude_rows; other row numbers count the rows that remain
    num_excluded: int = 0
    num_blank: int = 0  # records without any cell, which are no rows
    num_invalid: int = 0  # rows that break a rule, where they may: left out, or marked
    invalid: tuple[str, ...] = ()  # a line on each rule that they break
    copy: Any = None  # keeps a temporary copy of the file alive

    @property
    def vocabularies(self) -> Vocabularies:
        """What a file after this one knows."""
        return Vocabularies(
            num_rows=self.first_row + self.num_rows,
            targets=frozenset(target.name for target in self.targets),
            classes={t.name: t.classes for t in self.targets if t.has_codes and t.classes},
            strings={name: found.text for name, found in self.strings.items()},
            categories=dict(self.categories),
            facets=dict(self.facets),
            strata=self.strata,
            groups=() if self.groups is None else self.groups.values,
            group_stratum=() if self.groups is None else tuple(self.groups.stratum.tolist()),
            folds=self.folds,
        )

    def blocks(self, columns: Sequence[str], num_rows: int) -> Iterator[pl.DataFrame]:
        """Yield these canonical columns in table order, `num_rows` rows at a time.

        Text columns come as int32 codes; a table without rows is one block without rows. Raises
        TableError where the file cannot be read any more.
        """
        values = self._values
        others = {f"category:{column}": other for column, other in self.others.items()}
        rows = self.frame.select(
            _code(name, values[name], others.get(name)) if name in values else pl.col(name)
            for name in columns
        )
        try:
            # collect_batches reads far ahead of a slow consumer: 1.8 GB for 0.8 GB here, on 16
            # million rows of 40 columns
            if self.num_rows == 0:
                yield rows.head(0).collect(engine="streaming")
            elif self.in_slices:
                yield from (
                    rows.slice(start, num_rows).collect(engine="streaming")
                    for start in range(0, self.num_rows, num_rows)
                )
            else:
                yield from rows.collect_batches(
                    chunk_size=num_rows, maintain_order=True, engine="streaming"
                )
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            # of a Parquet file that is cut meanwhile polars' own code panics
            raise TableError(
                f"{self.path} changed or became unreadable while it was being read: {error!s:.200}"
            ) from None

    @property
    def _values(self) -> dict[str, tuple[str, ...]]:
        """The values of each canonical text column, in the order of their codes."""
        return {
            **{f"string:{name}": found.values for name, found in self.spellings.items()},
            **{f"category:{column}": values for column, values in self.categories},
            **{f"facet:{column}": values for column, values in self.facets},
            **{f"target:{t.name}": t.classes for t in self.targets if t.has_codes and t.classes},
            "stratum": self.strata,
            "split": SPLITS,
            "fold": self.folds,
            "group": () if self.groups is None else self.groups.values,
        }


def _code(name: str, values: tuple[str, ...], other: str | None = None) -> pl.Expr:
    """Return a text column as the indices of its values; `other` is that of all further ones."""
    text = pl.col(name)
    if other is not None:
        is_own = text.is_in(values) | text.is_null()
        text = pl.when(is_own).then(text).otherwise(pl.lit(other))
    return text.cast(pl.Enum(values)).to_physical().cast(pl.Int32).alias(name)
