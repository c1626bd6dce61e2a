"""The Pareto front: what no other candidate beats in one objective without losing in another.

Exact, over a stream: only the front itself is kept, and what is to be compared with it next.

Axes: N candidates, O objectives, of which more is better.
"""

import numpy as np
from jaxtyping import Bool, Float64

from fusionnet.design.candidates import Pool, empty_pool, joined_pools

CHUNK = 512  # candidates that are compared at once
LEAST_WAITING = 4_096  # candidates that wait for a comparison with the whole front
NUM_SCOUTS = 128  # of the front, which every candidate meets first


def is_dominated(
    values: Float64[np.ndarray, "N O"], by: Float64[np.ndarray, "K O"]
) -> Bool[np.ndarray, " N"]:
    """Return which candidates are nowhere better and somewhere worse than any of K others."""
    found = np.zeros(len(values), dtype=bool)
    for start in range(0, len(by), CHUNK):
        left = np.flatnonzero(~found)
        own, others = values[left], by[start : start + CHUNK]
        not_worse = np.ones((len(left), len(others)), dtype=bool)
        better = np.zeros_like(not_worse)
        for mine, theirs in zip(own.T, others.T, strict=True):
            not_worse &= theirs >= mine[:, None]
            better |= theirs > mine[:, None]
        found[left] = (not_worse & better).any(1)
    return found


def non_dominated(values: Float64[np.ndarray, "N O"]) -> Bool[np.ndarray, " N"]:
    """Return which candidates no other dominates; equal ones do not dominate each other."""
    order = np.lexsort(-values.T[::-1])  # what dominates a candidate comes before it
    front = np.zeros((0, values.shape[1]))
    kept = np.zeros(len(values), dtype=bool)
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        rows = rows[~is_dominated(values[rows], front)]
        rows = rows[~is_dominated(values[rows], values[rows])]
        kept[rows] = True
        front = np.concatenate([front, values[rows]])
    return kept


class RunningFront:
    """The front of all candidates so far."""

    def __init__(self, num_objectives: int, num_variables: int) -> None:
        self.values: Float64[np.ndarray, "N O"] = np.zeros((0, num_objectives))
        self.pool = empty_pool(num_variables)
        self._scouts = self.values
        self._waiting: list[tuple[Float64[np.ndarray, "_ O"], Pool]] = []
        self._num_waiting = 0

    def add(self, values: Float64[np.ndarray, "B O"], pool: Pool) -> None:
        """Take in candidates."""
        left = np.flatnonzero(~is_dominated(values, self._scouts))
        self._waiting.append((values[left], pool.take(left)))
        self._num_waiting += len(left)
        if self._num_waiting > max(LEAST_WAITING, len(self.values)):
            self.settle()

    def settle(self) -> None:
        """Compare all that wait with the front, which is that of all candidates then."""
        values = np.concatenate([self.values, *(each for each, _ in self._waiting)])
        pool = joined_pools([self.pool, *(each for _, each in self._waiting)])
        kept = np.flatnonzero(non_dominated(values))
        self.values, self.pool = values[kept], pool.take(kept)
        self._waiting, self._num_waiting = [], 0
        self._scouts = self.values[:: max(1, len(kept) // NUM_SCOUTS)]
