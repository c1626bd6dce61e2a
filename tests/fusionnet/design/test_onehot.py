"""Sets of columns of which exactly one is 1."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool

from fusionnet.design.onehot import one_hot_sets


def brute_force(rows: Bool[np.ndarray, "N C"]) -> list[tuple[int, ...]]:
    """Return all sets of columns that are not constant and sum to one in each row."""
    free = [c for c in range(rows.shape[1]) if rows[:, c].any() and not rows[:, c].all()]
    return [
        each
        for size in range(2, len(free) + 1)
        for each in combinations(free, size)
        if (rows[:, each].sum(1) == 1).all()
    ]


@given(st.lists(st.tuples(*[st.booleans()] * 5), min_size=1, max_size=6))
def test_each_set_sums_to_one_and_none_is_overlooked(rows: list[tuple[bool, ...]]) -> None:
    table = np.array(rows)
    found, wanted = one_hot_sets(table), brute_force(table)
    used = [c for each in found for c in each]
    assert set(found) <= set(wanted)
    assert len(set(used)) == len(used)
    assert all(set(each) & set(used) for each in wanted)  # what is left out would share a column


@pytest.mark.parametrize("sizes", [(4,), (2, 3), (2, 2, 5)])
def test_sets_side_by_side_are_told_apart(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = [np.eye(size, dtype=bool)[rng.integers(size, size=200)] for size in sizes]
    lone = rng.random((200, 1)) < 0.5  # a column of its own
    ends = np.cumsum(sizes)
    wanted = [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    assert one_hot_sets(np.concatenate([*parts, lone], axis=1)) == wanted
