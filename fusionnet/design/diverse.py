"""The best candidates that differ from each other.

Greedy: candidates are taken in the order of their rewards, each unless it is too near to one that
was taken: of the same material and choices, with no variable a `distance` of its range away. Of a
stream only the best of each cell are kept. That is exact as long as all that was left out has a
smaller reward than the last that was taken, and it is said whether that was so.

Axes: N candidates, B those of a block, V variables.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fusionnet.design.candidates import Pool, empty_pool, joined_pools


class Diverse(NamedTuple):
    """What was taken of a pool, in the order of rewards."""

    rows: Int64[np.ndarray, " T"]
    is_exact: bool  # no candidate that was left out would have been taken


class RunningTop:
    """The best candidates of each cell so far; of equal ones the first."""

    def __init__(self, num_cells: int, per_cell: int, num_variables: int) -> None:
        self.pool = empty_pool(num_variables)
        self.left_out = -np.inf  # the greatest reward that is not in the pool
        self._floor = np.full(num_cells, -np.inf)  # the least reward of each full cell
        self._per_cell = per_cell
        self._waiting: list[Pool] = []
        self._num_waiting = 0

    def add(self, pool: Pool) -> None:
        """Take in candidates."""
        is_better = pool.reward > self._floor[pool.cell]
        self._leave_out(pool.reward[~is_better])
        self._waiting.append(pool.take(np.flatnonzero(is_better)))
        self._num_waiting += int(is_better.sum())
        if self._num_waiting > len(self._floor) * self._per_cell:
            self.settle()

    def settle(self) -> None:
        """Leave out what is not among the best of its cell."""
        joined = joined_pools([self.pool, *self._waiting])
        ordered = joined.take(np.lexsort((joined.number, -joined.reward, joined.cell)))
        first = np.searchsorted(ordered.cell, ordered.cell)
        place = np.arange(len(first)) - first
        self._leave_out(ordered.reward[place >= self._per_cell])
        self.pool = ordered.take(np.flatnonzero(place < self._per_cell))
        last = ordered.take(np.flatnonzero(place == self._per_cell - 1))
        self._floor[last.cell] = last.reward
        self._waiting, self._num_waiting = [], 0

    def _leave_out(self, reward: Float64[np.ndarray, " _"]) -> None:
        self.left_out = max(self.left_out, reward.max(initial=-np.inf))


def diverse(
    pool: Pool,
    place: Float64[np.ndarray, "N V"],
    left_out: float,
    distance: float,
    count: int,
) -> Diverse:
    """Return the candidates that are taken, at most `count`.

    `place` says at which share of its range each variable is, `left_out` is the greatest reward of
    any candidate that is not in the pool.
    """
    order = np.lexsort((pool.number, -pool.reward))
    free: Bool[np.ndarray, " N"] = np.ones(len(order), dtype=bool)
    taken: list[int] = []
    while len(taken) < count and free.any():
        best = int(order[free.argmax()])
        taken.append(best)
        apart = np.abs(place[order] - place[best]) >= distance
        free &= (pool.cell[order] != pool.cell[best]) | apart.any(1)
        free[order == best] = False
    rows = np.array(taken, dtype=np.int64)
    is_ahead = len(taken) == count and pool.reward[rows[-1]] > left_out
    return Diverse(rows, bool(is_ahead or np.isneginf(left_out)))
