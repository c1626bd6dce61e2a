"""The designs that are taken are those of the plain greedy rule over all candidates, or it is said
that they may be others.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionnet.design.candidates import Pool
from fusionnet.design.diverse import RunningTop, diverse


def candidates(seed: int, num: int, num_cells: int, num_rewards: int = 10**6) -> Pool:
    rng = np.random.default_rng(seed)
    share = rng.random((num, 2))
    reward = rng.integers(num_rewards, size=num) + 0.0
    return Pool(np.arange(num), rng.integers(num_cells, size=num), share, reward)


def plain_greedy(pool: Pool, distance: float, count: int) -> list[int]:
    """Return the numbers of what is taken, candidate by candidate."""
    taken: list[int] = []
    for row in sorted(range(len(pool.number)), key=lambda row: (-pool.reward[row], row)):
        near = [
            other
            for other in taken
            if pool.cell[other] == pool.cell[row]
            and np.abs(pool.share[other] - pool.share[row]).max() < distance
        ]
        if not near and len(taken) < count:
            taken.append(row)
    return taken


@given(
    seed=st.integers(0, 2**32 - 1),
    per_cell=st.integers(1, 30),
    num_cells=st.integers(1, 4),
    distance=st.sampled_from([0.0, 0.3, 0.6, 2.0]),
    num_rewards=st.sampled_from([5, 10**6]),
)
def test_what_is_called_exact_is_the_greedy_rule_over_all(
    seed: int, per_cell: int, num_cells: int, distance: float, num_rewards: int
) -> None:
    every = candidates(seed, 120, num_cells, num_rewards)
    top = RunningTop(num_cells, per_cell, 2)
    for rows in np.split(np.arange(120), [7, 50, 51, 99]):
        top.add(every.take(rows))
    top.settle()
    found = diverse(top.pool, top.pool.share, top.left_out, distance, 5)
    numbers = top.pool.number[found.rows].tolist()
    if found.is_exact:
        assert numbers == plain_greedy(every, distance, 5)
    else:
        assert per_cell < 120
    assert numbers[0] == plain_greedy(every, distance, 1)[0]  # the best is never lost


def test_a_pool_of_all_candidates_is_exact() -> None:
    every = candidates(0, 200, 3)
    top = RunningTop(3, 200, 2)
    top.add(every)
    top.settle()
    found = diverse(top.pool, top.pool.share, top.left_out, 0.5, 50)
    assert found.is_exact
    assert top.pool.number[found.rows].tolist() == plain_greedy(every, 0.5, 50)


@pytest.mark.parametrize("per_cell", [1, 10])
def test_the_pool_is_the_best_of_each_cell(per_cell: int) -> None:
    every = candidates(1, 500, 4)
    top = RunningTop(4, per_cell, 2)
    for rows in np.split(np.arange(500), 10):
        top.add(every.take(rows))
    top.settle()
    assert len(top.pool.number) == 4 * per_cell  # memory is that of the pool, not of the stream
    for cell in range(4):
        own = np.flatnonzero(every.cell == cell)
        best = own[np.argsort(-every.reward[own], kind="stable")[:per_cell]]
        assert top.pool.number[top.pool.cell == cell].tolist() == best.tolist()
    lost = np.setdiff1d(every.number, top.pool.number)
    assert top.left_out == every.reward[lost].max()


def of_rewards(number: list[int], cell: list[int], reward: list[float]) -> Pool:
    share = np.zeros((len(number), 1))
    return Pool(np.array(number), np.array(cell), share, np.array(reward))


def test_what_comes_too_late_for_the_pool_counts_as_left_out() -> None:
    top = RunningTop(1, 2, 1)
    top.add(of_rewards([0, 1, 2], [0, 0, 0], [5.0, 4.0, 1.0]))  # the pool is full, and settled
    top.add(of_rewards([3], [0], [3.0]))
    top.settle()
    assert top.left_out == 3.0


def test_of_equal_rewards_none_is_called_exact() -> None:
    top = RunningTop(2, 1, 1)
    top.add(of_rewards([0, 1, 2], [0, 0, 1], [5.0, 5.0, 5.0]))
    top.settle()
    found = diverse(top.pool, top.pool.share, top.left_out, 0.0, 2)
    assert top.pool.number[found.rows].tolist() == [0, 2]  # over all: 0 and 1
    assert not found.is_exact
