"""The names in a table and the codes that stand for them: value k of a column has code k.

A first file's names are sorted. A file that is appended changes no code: the names that were there
keep theirs, and the new ones follow, sorted among themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from embedcache.table.checks import count_of


class Vocabulary(NamedTuple):
    """A source column and its distinct values: value k has code k."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Census:
    """The K distinct values of a text column in the order of their codes, with one file's rows by
    class of the stratifying label, and their strata.
    """

    values: tuple[str, ...]
    # one column; with a stratifying label three: negative, positive, unlabelled
    counts: Int64[np.ndarray, "K _"]
    stratum: Int64[np.ndarray, " K"]

    @property
    def num_rows(self) -> Int64[np.ndarray, " K"]:
        """Rows per value."""
        return self.counts.sum(1)


@dataclass(frozen=True)
class Vocabularies:
    """The names in all files before one, in the order of their codes; a first file knows none."""

    num_rows: int = 0
    targets: frozenset[str] = frozenset()  # that have labels
    strings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    strata: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    group_stratum: tuple[int, ...] = ()


NO_VOCABULARIES = Vocabularies()


def followed_by(known: tuple[str, ...], values: Iterable[str]) -> tuple[str, ...]:
    """Return the known values in their order, then the new ones, sorted: how anything that has a
    code grows when a file is appended.
    """
    return (*known, *sorted({*values}.difference(known)))


def after_known(census: Census, known: Vocabularies, violations: list[str]) -> Census:
    """Return a census of groups with the known ones first, and note those that lay in another
    stratum before.
    """
    values = followed_by(known.groups, census.values)
    place = {group: code for code, group in enumerate(values)}
    codes = np.array([place[group] for group in census.values], dtype=np.int64)
    counts = np.zeros((len(values), census.counts.shape[1]), dtype=np.int64)
    stratum = np.zeros(len(values), dtype=np.int64)
    stratum[: len(known.groups)] = known.group_stratum
    moved = [
        values[code]
        for code, found in zip(codes.tolist(), census.stratum.tolist(), strict=True)
        if code < len(known.groups) and stratum[code] != found
    ]
    if moved:
        shown = ", ".join(repr(group) for group in moved[:5])
        violations.append(
            f"stratum column: {count_of(len(moved), 'group')} with another value than in the files"
            f" before, e.g. {shown}"
        )
    counts[codes], stratum[codes] = census.counts, census.stratum
    return Census(values, counts, stratum)
