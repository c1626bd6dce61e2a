"""Mean, spread and extremes of columns, gathered while rows stream by.

Sums are float64 and merged block by block (Chan, Golub, LeVeque 1979): the textbook sum of squares
loses all digits when a feature's mean is large beside its spread (a year, a temperature in kelvin),
and two passes would read the table twice.

Axes: N rows, S distinct strings, E width of their vectors, W columns of whatever kind.
"""

import numpy as np
from jaxtyping import Float, Int

from embedcache.scaling import FeatureScaling, VectorScaling

# of the mean spread over dimensions: a dimension in which strings hardly differ is not blown up to
# the size of the others
SPREAD_FLOOR = 0.01

# when a few values of a feature flatten all others, in spreads (see `Moments.is_flattened`)
FAR_OFF, FLATTENED_BY, FEWEST_FLATTENED = 100, 10, 20

ROWS_AT_ONCE = 1 << 15  # in float64, with some temporaries


class Moments:
    """Count, mean, spread and extremes of W columns, merged over blocks of rows without NaN.

    scikit-learn's StandardScaler.partial_fit is no substitute, though as fast: a column without a
    value in the first block (a target that an appended file brings) stays NaN for ever; blocks
    without rows or columns are refused; and its import would cost whoever reads a table or a cache
    more than a second of CPU.
    """

    def __init__(self, width: int) -> None:
        """Start with no rows."""
        self.count: Int[np.ndarray, " W"] = np.zeros(width, dtype=np.int64)
        self.mean: Float[np.ndarray, " W"] = np.zeros(width)
        self._squares: Float[np.ndarray, " W"] = np.zeros(width)
        self.low: Float[np.ndarray, " W"] = np.full(width, np.inf)
        self.high: Float[np.ndarray, " W"] = np.full(width, -np.inf)

    def add(self, values: Float[np.ndarray, "N W"]) -> None:
        """Merge one block of rows."""
        if not values.size:
            return
        values = values.astype(np.float64)
        observed = ~np.isnan(values)
        count = observed.sum(0)
        mean = np.where(observed, values, 0.0).sum(0) / np.maximum(count, 1)
        squares = np.where(observed, values - mean, 0.0)
        total = self.count + count
        share = count / np.maximum(total, 1)
        shift = mean - self.mean
        self._squares += (squares * squares).sum(0) + shift * shift * self.count * share
        self.mean += shift * share
        self.count = total
        self.low = np.minimum(self.low, np.where(observed, values, np.inf).min(0))
        self.high = np.maximum(self.high, np.where(observed, values, -np.inf).max(0))

    def is_flattened(self, column: int) -> bool:
        """Return whether a few values are so far away that all others are nearly one value.

        That is: one lies FAR_OFF spreads from the mean; or without the one that is farthest the
        spread would be a small part of what it is.
        """
        count, spread = int(self.count[column]), float(self.spread[column])
        if count < FEWEST_FLATTENED or spread == 0:
            return False
        mean = self.mean[column]
        farthest = max(self.high[column] - mean, mean - self.low[column])
        without = (count * spread**2 - count / (count - 1) * farthest**2) / (count - 1)
        return bool(farthest > FAR_OFF * spread or without < (spread / FLATTENED_BY) ** 2)

    def is_zero_or_one(self, column: int) -> bool:
        """Return whether all values are 0 or 1, some of each: no others have that spread between
        these bounds.
        """
        mean, low, high = self.mean[column], self.low[column], self.high[column]
        is_widest = abs(self.spread[column] ** 2 - mean * (1 - mean)) < 1e-9
        return bool(low == 0 and high == 1 and is_widest)

    @property
    def std(self) -> Float[np.ndarray, " W"]:
        """Population standard deviation; 1 where all observed values are equal."""
        return np.where(self.spread > 0, self.spread, 1.0)

    @property
    def spread(self) -> Float[np.ndarray, " W"]:
        """Population standard deviation; 0 where all observed values are equal.

        What is computed there is rounding.
        """
        computed = np.sqrt(self._squares / np.maximum(self.count, 1))
        return np.where(self.high > self.low, computed, 0.0)


def vector_scaling(vectors: Float[np.ndarray, "S E"]) -> VectorScaling:
    """Return mean and spread of vectors by dimension.

    Each spread is at least SPREAD_FLOOR of their root mean square; 1 where all vectors are equal.
    """
    moments = Moments(vectors.shape[1])
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        moments.add(vectors[first : first + ROWS_AT_ONCE])
    floor = SPREAD_FLOOR * float(np.sqrt(np.mean(moments.spread**2)))
    std = np.maximum(moments.spread, floor) if floor > 0 else np.ones_like(moments.spread)
    return VectorScaling(floats(moments.mean), floats(std))


def feature_scaling(features: Float[np.ndarray, "S K"]) -> FeatureScaling:
    """Return robust statistics of strings' features, NaN where missing; see `FeatureScaling`.

    A feature that no string has, or all alike, gets a scale of 0.
    """
    width = features.shape[1]
    center, scale = np.zeros(width), np.zeros(width)
    for column in range(width):
        values = features[:, column].astype(np.float64)
        known = values[~np.isnan(values)]
        if not len(known):
            continue
        low, lower, center[column], upper, high = np.quantile(known, [0, 0.25, 0.5, 0.75, 1])
        if upper > lower:
            scale[column] = 1 / (upper - lower)
        elif high > low:
            scale[column] = 2 / (high - low)
    return FeatureScaling(floats(center), floats(scale))


def floats(values: Float[np.ndarray, " W"]) -> tuple[float, ...]:
    """Return numbers as a config and JSON hold them."""
    return tuple(float(value) for value in values)
