"""Which columns are shuffled together.

Each column alone, but for those that mean nothing apart: one-hot columns of one feature group stay
one-hot, and a number goes with the feature that says whether it was missing. Then groups of them:
what correlates inside a group shares importance, of which each has little alone. Last the columns
that are constant within each group of the split (a whole patient), and all of them.

Axes: N rows, F numeric features, C string columns, K category columns.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Num

from embedcache.cache.layout import Layout, RowBlock
from embedcache.config.columns import indicator_of

MOST_NAMED = 3  # columns of a set whose names begin alike in nothing


class ColumnSet(NamedTuple):
    """Columns that are shuffled together, by their places among those of their kind."""

    name: str
    kind: str
    numeric: tuple[int, ...] = ()
    strings: tuple[int, ...] = ()
    categories: tuple[int, ...] = ()

    def names(self, layout: Layout) -> tuple[str, ...]:
        """Return the columns' names in the table."""
        return (
            *(layout.strings[column].column for column in self.strings),
            *(layout.numeric[column].column for column in self.numeric),
            *(layout.categories[column][0] for column in self.categories),
        )

    @property
    def size(self) -> int:
        """How many columns it has."""
        return len(self.numeric) + len(self.strings) + len(self.categories)


SINGLE = ("string", "number", "one-hot", "category")  # the kinds that are no groups of others


def column_sets(layout: Layout, rows: RowBlock, group: str | None) -> list[ColumnSet]:
    """Return what is shuffled together: single columns first, all columns last.

    `rows` tell which columns are one-hot, and which are constant within each group; `group` is the
    column of groups, if there is one.
    """
    singles = [
        *(ColumnSet(each.column, "string", strings=(c,)) for c, each in enumerate(layout.strings)),
        *_numbers(layout, rows),
        *(
            ColumnSet(column, "category", categories=(c,))
            for c, (column, _) in enumerate(layout.categories)
        ),
    ]
    sets = [*singles, *_feature_groups(layout)]
    if group is not None and layout.groups:
        constant = _constant_within(rows)
        if constant.size > 1:
            sets.append(constant._replace(name=f"all that is constant in a {group}"))
    numeric, strings, categories = map(len, (layout.numeric, layout.strings, layout.categories))
    everything = (tuple(range(numeric)), tuple(range(strings)), tuple(range(categories)))
    return [*sets, ColumnSet("all columns", "all", *everything)]


def _numbers(layout: Layout, rows: RowBlock) -> Iterator[ColumnSet]:
    """Yield the numbers, those together that mean nothing apart."""
    names = [column.column for column in layout.numeric]
    belongs = {indicator_of(column).column: number for number, column in enumerate(layout.numeric)}
    taken: set[int] = set()
    for members in one_hot_sets(layout, rows.numeric):
        taken |= {*members}
        yield ColumnSet(_common_name([names[f] for f in members]), "one-hot", numeric=members)
    for number, name in enumerate(names):
        if number in taken or name in belongs:
            continue
        indicators = [f for f, each in enumerate(names) if belongs.get(each) == number]
        yield ColumnSet(name, "number", numeric=(number, *indicators))


def one_hot_sets(layout: Layout, numeric: Num[np.ndarray, "N F"]) -> list[tuple[int, ...]]:
    """Return neighbours in a feature group, of which every row has 1 in exactly one, else 0."""
    found = []
    for members in _members(layout).values():
        binary = [f for f in members if len(numeric) and np.isin(numeric[:, f], (0, 1)).all()]
        start = 0
        while start < len(binary):
            end = _end_of_one_hot(numeric[:, binary[start:]])
            if end > 1:
                found.append(tuple(binary[start : start + end]))
            start += max(1, end)
    return found


def _end_of_one_hot(columns: Num[np.ndarray, "N _"]) -> int:
    """Return how many columns from the first on are one-hot together; 0 where none are."""
    is_whole = (np.cumsum(columns, axis=1) == 1).all(0)
    return int(is_whole.argmax()) + 1 if is_whole.any() else 0


def _feature_groups(layout: Layout) -> Iterator[ColumnSet]:
    for name, members in _members(layout).items():
        if len(members) > 1:
            yield ColumnSet(f"group {name}", "group of features", numeric=tuple(members))


def _members(layout: Layout) -> dict[str, list[int]]:
    """Return the numeric features of each group."""
    members: dict[str, list[int]] = {}
    for number, column in enumerate(layout.numeric):
        members.setdefault(column.feature_group, []).append(number)
    return members


def _constant_within(rows: RowBlock) -> ColumnSet:
    parts = (rows.numeric, rows.string_id, rows.category)
    places = (tuple(np.flatnonzero(_is_constant(each, rows.group)).tolist()) for each in parts)
    return ColumnSet("", "constant", *places)


def _is_constant(
    columns: Num[np.ndarray, "N _"], group: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, " _"]:
    """Return which columns have one value in each group."""
    order = np.argsort(group, kind="stable")
    same = np.diff(group[order]) == 0
    before, after = columns[order][:-1][same], columns[order][1:][same]
    return ((before == after) | (np.isnan(before) & np.isnan(after))).all(0)


def _common_name(names: Sequence[str]) -> str:
    """Return one name for one-hot columns: what theirs begin with, or the first few."""
    alike = takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("_- .:=")
    if len(common) > 2:
        return f"{common} ({len(names)} columns)"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
