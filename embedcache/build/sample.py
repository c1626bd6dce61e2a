"""A sample of rows that stream by, of bounded size: what quantiles of features are taken from.

Every row has a random number that is a function of its place among the rows, and those with the
smallest numbers are kept. So each row is as likely as any other whatever order a table has, all
rows are kept where they are few, and neither the blocks in which they come nor a seed matter. With
65,536 rows a quantile's share is off by 0.2 % (one standard deviation of its middle).

Axes: N rows, W columns.
"""

import numpy as np
from jaxtyping import Float, UInt64

MOST_ROWS, LEAST_ROWS = 1 << 16, 1 << 12
MOST_CELLS = 1 << 24  # of a sample of many columns: 64 MiB, twice that while it is gathered


class RowSample:
    """Keeps some rows of W columns, or all of them."""

    def __init__(self, width: int) -> None:
        """Start with no rows."""
        self._most = max(LEAST_ROWS, min(MOST_ROWS, MOST_CELLS // max(1, width)))
        self._num_seen = self._num_held = 0
        self._bound = np.uint64(2**64 - 1)  # numbers above it are not among the smallest
        self._numbers = [np.empty(0, dtype=np.uint64)]
        self._rows: list[Float[np.ndarray, "_ W"]] = [np.empty((0, width), dtype=np.float32)]

    def add(self, rows: Float[np.ndarray, "N W"]) -> None:
        """Look at some more rows."""
        for first in range(0, len(rows), self._most):  # a long block is not held as a whole
            self._add(rows[first : first + self._most])

    def columns(self) -> list[Float[np.ndarray, " _"]]:
        """Return each column's values in the sample, without NaN."""
        self._shrink()
        return [column[~np.isnan(column)] for column in self._rows[0].T]

    def _add(self, rows: Float[np.ndarray, "N W"]) -> None:
        numbers = _scattered(self._num_seen, len(rows))
        self._num_seen += len(rows)
        kept = numbers <= self._bound
        self._numbers.append(numbers[kept])
        self._rows.append(rows[kept].astype(np.float32))
        self._num_held += int(kept.sum())
        if self._num_held > 2 * self._most:
            self._shrink()

    def _shrink(self) -> None:
        """Keep the rows with the smallest numbers."""
        numbers, rows = np.concatenate(self._numbers), np.concatenate(self._rows)
        if len(numbers) > self._most:
            kept = np.argpartition(numbers, self._most - 1)[: self._most]
            numbers, rows = numbers[kept], rows[kept]
            self._bound = numbers.max()
        self._numbers, self._rows, self._num_held = [numbers], [rows], len(numbers)


def _scattered(first: int, count: int) -> UInt64[np.ndarray, " N"]:
    """Return numbers for places from `first` on: splitmix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
