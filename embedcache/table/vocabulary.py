"""The names in a table and the codes that stand for them: value k of a column has code k.

A first file's names are sorted. A file that is appended changes no code: the names that were there
keep theirs, and the new ones follow, sorted among themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """A source column and its distinct values: value k has code k."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Vocabularies:
    """The names in all files before one, in the order of their codes; before a first file, none."""

    num_rows: int = 0
    targets: frozenset[str] = frozenset()  # that have labels
    strings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by string column
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by target, in codes
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by source column
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by source column
    strata: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    group_stratum: tuple[int, ...] = ()
    folds: tuple[str, ...] = ()


NO_VOCABULARIES = Vocabularies()


def followed_by(known: tuple[str, ...], values: Iterable[str]) -> tuple[str, ...]:
    """Return the known values in their order, then the new ones, sorted.

    This is how anything that has a code grows when a file is appended.
    """
    return (*known, *sorted({*values}.difference(known)))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names sorted, as numbers where all of them are: 2 before 10."""
    texts = sorted(names)
    try:
        return tuple(sorted(texts, key=float))
    except ValueError:
        return tuple(texts)
