"""The statistics of train rows, gathered while the rows stream by, and what is odd about them.

Sums are float64 and merged block by block (Chan, Golub, LeVeque 1979): the textbook sum of squares
loses all digits when a feature's mean is large beside its spread (a year, a temperature in kelvin),
and two passes would read the table twice.

Axes: N rows, F numeric features, T targets, S distinct strings, E width of their vectors, W columns
of whatever kind.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from embedcache.cache.layout import Layout, RowBlock
from embedcache.config.split import SPLITS
from embedcache.config.table import NumericColumn, TargetColumn
from embedcache.errors import SplitError
from embedcache.scaling import Scaling, VectorScaling, transformed

# of the mean spread over dimensions: a dimension in which strings hardly differ is not blown up to
# the size of the others
SPREAD_FLOOR = 0.01

# when a few values of a feature flatten all others, in spreads (see `Moments.is_flattened`)
FAR_OFF, FLATTENED_BY, FEWEST_FLATTENED = 100, 10, 20

# by which data loggers and old programs mark what was not measured
MARKS_OF_MISSING = {-99.0, -999.0, -9999.0, -99999.0, 9999.0, 99999.0, 999999.0}

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
    return VectorScaling(_floats(moments.mean), _floats(std))


def _floats(values: Float[np.ndarray, " W"]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _marks_of_missing(what: str, low: float, high: float) -> list[str]:
    """Return a line on a least or greatest value that often stands for a missing one."""
    return [
        f"{what} has {value:g} in train rows: if that stands for a missing value, list it in"
        " data.null_values"
        for value in dict.fromkeys((float(low), float(high)))
        if value in MARKS_OF_MISSING
    ]


class ScalingFit:
    """Gathers a Scaling from blocks of train rows.

    Medians are exact, so the values of features that a median fills are held: 4 bytes a row each.
    """

    def __init__(self, numeric: Sequence[NumericColumn], targets: Sequence[TargetColumn]) -> None:
        """Start with no rows."""
        self._numeric = tuple(numeric)
        self._transforms = tuple(column.transform for column in numeric)
        self._targets = tuple(targets)
        self._target_transforms = tuple(target.transform for target in self._targets)
        self._low = np.full(len(self._numeric), np.inf)  # of raw values
        self._high = np.full(len(self._numeric), -np.inf)
        self._averaged = [f for f, column in enumerate(numeric) if column.fill == "mean"]
        self._raw = Moments(len(self._averaged))  # of those that a mean fills
        self._features = Moments(len(self._numeric))
        self._labels = Moments(len(self._targets))
        self._held: dict[int, list[Float[np.ndarray, " N"]]] = {
            f: [] for f, column in enumerate(numeric) if column.fill in ("median", "indicator")
        }

    def add(self, numeric: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N T"]) -> None:
        """Merge train rows: raw features, NaN where missing, and labels, NaN where unobserved."""
        if len(numeric):
            self._low = np.fmin(self._low, np.fmin.reduce(numeric, axis=0))
            self._high = np.fmax(self._high, np.fmax.reduce(numeric, axis=0))
        for f, values in self._held.items():
            values.append(numeric[~np.isnan(numeric[:, f]), f])
        for first in range(0, len(numeric), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            features = torch.from_numpy(numeric[rows]).double()
            self._raw.add(numeric[rows][:, self._averaged])
            self._features.add(transformed(features, self._transforms).numpy())
            labels = torch.from_numpy(targets[rows]).double()
            self._labels.add(transformed(labels, self._target_transforms).numpy())

    def remarks(self) -> list[str]:
        """Return what a reader should know of the features' and labels' values in train rows."""
        lines = []
        for f, column in enumerate(self._numeric):
            what, count = f"numeric column '{column.column}'", int(self._features.count[f])
            if count and self._features.spread[f] == 0:
                lines.append(f"{what} has one value in all train rows, {self._low[f]:g}")
            elif self._features.is_flattened(f):
                advice = "" if column.transform != "identity" else "; a transform, or a wrong unit?"
                lines.append(
                    f"{what} is so skewed that a few values flatten the others: train rows have"
                    f" {self._low[f]:g} to {self._high[f]:g}{advice}"
                )
            lines += _marks_of_missing(what, self._low[f], self._high[f])
        for t, target in enumerate(self._targets):
            if target.transform != "identity" or target.kind == "binary":
                continue
            what, labels = f"target column '{target.column}'", self._labels
            if labels.is_zero_or_one(t):
                lines.append(f"{what} has only 0 and 1: is it of kind: binary?")
            if labels.is_flattened(t):
                lines.append(
                    f"{what} is so skewed that a few labels flatten the others: train rows have"
                    f" {labels.low[t]:g} to {labels.high[t]:g}; a transform, or a wrong unit?"
                )
            lines += _marks_of_missing(what, labels.low[t], labels.high[t])
        return lines

    def _fill(self, f: int) -> float | None:
        """Return what stands for the missing values of a feature; None where nothing does."""
        column = self._numeric[f]
        if column.fill is None:
            return None
        if self._features.count[f] == 0:
            raise SplitError(
                f"numeric column '{column.column}' has no value in any train row, so there is no"
                f" {column.fill} to fill its missing values with; leave the column out, or give a"
                " number as if_null"
            )
        if column.fill == "mean":
            return float(np.float32(self._raw.mean[self._averaged.index(f)]))
        return float(np.float32(np.median(np.concatenate(self._held[f]))))

    def result(self, vectors: Mapping[str, Float[np.ndarray, "S E"]] | None = None) -> Scaling:
        """Return the statistics of all rows added so far.

        `vectors` are those of the distinct strings that train, by string column.
        """
        labels = list(zip(self._targets, self._labels.mean, self._labels.std, strict=True))
        return Scaling(
            columns=tuple(column.column for column in self._numeric),
            transforms=self._transforms,
            mean=_floats(self._features.mean),
            std=_floats(self._features.std),
            low=_floats(np.where(self._features.count > 0, self._low, 0.0)),
            high=_floats(np.where(self._features.count > 0, self._high, 0.0)),
            fill=tuple(self._fill(f) for f in range(len(self._numeric))),
            target_mean=tuple(
                float(mean) if target.kind == "regression" else 0.0 for target, mean, _ in labels
            ),
            target_std=tuple(
                float(std) if target.kind == "regression" else 1.0 for target, _, std in labels
            ),
            positive_rate={
                target.name: float(mean) for target, mean, _ in labels if target.kind == "binary"
            },
            vectors={name: vector_scaling(values) for name, values in (vectors or {}).items()},
        )


class TrainStatistics:
    """Gathers the Scaling of a cache from its blocks of rows, of which only train rows count.

    Statistics of vectors count each string of a train row once.
    """

    def __init__(self, layout: Layout) -> None:
        """Start with no rows."""
        self.fit = ScalingFit(layout.numeric, layout.targets)
        self._trained = {
            spec.name: np.zeros(spec.num_strings, dtype=bool) for spec in layout.strings
        }

    def add(self, block: RowBlock) -> None:
        """Merge the train rows of one block."""
        is_train = block.split == SPLITS.index("train")
        self.fit.add(block.numeric[is_train], block.targets[is_train])
        for column, is_trained in enumerate(self._trained.values()):
            is_trained[block.string_id[is_train, column]] = True

    def scaling(self, vectors: Mapping[str, Float[np.ndarray, "S E"]]) -> Scaling:
        """Return the statistics of all train rows; `vectors` are all strings', by column."""
        return self.fit.result(
            {name: vectors[name][is_trained] for name, is_trained in self._trained.items()}
        )
