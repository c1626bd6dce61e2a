"""The distinct values of text columns and their rows, each counted in one streaming pass.

Axes: V values of a column (of groups: G), K classes of the stratifying label, one without a label.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int64

from embedcache.table.vocabulary import Vocabularies, followed_by


@dataclass(frozen=True)
class ValueCounts:
    """The distinct values of a text column in the order of their codes, with one file's rows."""

    values: tuple[str, ...]
    # rows; or with a stratifying label those of each class, then those without a label
    counts: Int64[np.ndarray, "V K"]

    @property
    def num_rows(self) -> Int64[np.ndarray, " V"]:
        """Rows per value."""
        return self.counts.sum(1)

    @property
    def rows_by_value(self) -> dict[str, int]:
        """The same, by value."""
        return dict(zip(self.values, self.num_rows.tolist(), strict=True))


@dataclass(frozen=True)
class Groups(ValueCounts):
    """The groups in the order of their codes, with one file's rows and the stratum of each."""

    stratum: Int64[np.ndarray, " G"]  # all zero where the table has no strata


def values_of(frame: pl.LazyFrame, column: str) -> tuple[str, ...]:
    """Return the distinct non-null values of a text column, sorted."""
    distinct = frame.select(column).drop_nulls().unique().collect(engine="streaming")
    return tuple(distinct[column].sort().to_list())


class Label(NamedTuple):
    """The canonical column of a label whose shares the splits should have in common."""

    column: str
    classes: tuple[str, ...] = ()  # of a text column; none: it is 0 or 1


def count_values(frame: pl.LazyFrame, column: str, label: Label | None = None) -> ValueCounts:
    """Return the distinct non-null values of a text column, sorted, with their rows."""
    rows = _rows_by_class(label)
    found = (
        frame.filter(pl.col(column).is_not_null())
        .group_by(pl.col(column).alias("value"))
        .agg(**rows)
        .collect(engine="streaming")
        .sort("value")
    )
    return ValueCounts(tuple(found["value"].to_list()), _matrix(found.select(*rows)))


def count_groups(frame: pl.LazyFrame, label: Label | None, strata: tuple[str, ...]) -> Groups:
    """Return the groups, sorted, with their rows and their stratum, of several the least."""
    rows = _rows_by_class(label)
    stratum = {"stratum": pl.col("stratum").min()} if strata else {}
    found = (
        frame.filter(pl.col("group").is_not_null())
        .group_by("group")
        .agg(**rows, **stratum)
        .collect(engine="streaming")
        .sort("group")
    )
    stratum_of = np.zeros(found.height, dtype=np.int64)
    if strata:
        code = {name: k for k, name in enumerate(strata)}
        stratum_of[:] = [code.get(name, 0) for name in found["stratum"]]
    return Groups(tuple(found["group"].to_list()), _matrix(found.select(*rows)), stratum_of)


def count_times(frame: pl.LazyFrame) -> pl.DataFrame:
    """Return the distinct numbers of the column `time`, sorted, and the `rows` of each."""
    counted = frame.group_by("time").agg(rows=pl.len().cast(pl.Int64))
    return counted.collect(engine="streaming").sort("time")


def known_first(found: Groups, known: Vocabularies) -> tuple[Groups, list[str]]:
    """Return all groups, the known ones first, and the names of those that changed their stratum.

    Known groups that the file lacks have no rows in it.
    """
    values = followed_by(known.groups, found.values)
    code = {group: k for k, group in enumerate(values)}
    codes = np.array([code[group] for group in found.values], dtype=np.int64)
    counts = np.zeros((len(values), found.counts.shape[1]), dtype=np.int64)
    counts[codes] = found.counts
    stratum = np.zeros(len(values), dtype=np.int64)
    stratum[: len(known.groups)] = known.group_stratum
    changed = codes[(codes < len(known.groups)) & (stratum[codes] != found.stratum)]
    stratum[codes] = found.stratum
    return Groups(values, counts, stratum), [values[k] for k in changed.tolist()]


def _rows_by_class(label: Label | None) -> dict[str, pl.Expr]:
    """Return what counts rows, in all or by class of a label."""
    if label is None:
        return {"rows": pl.len()}
    value = pl.col(label.column)
    classes: tuple[Any, ...] = label.classes or (0, 1)
    counts = {f"class {k}": (value == each).sum() for k, each in enumerate(classes)}
    return {**counts, "unlabelled": value.is_null().sum()}


def _matrix(counts: pl.DataFrame) -> Int64[np.ndarray, "V K"]:
    return np.ascontiguousarray(counts.cast(pl.Int64).to_numpy())
