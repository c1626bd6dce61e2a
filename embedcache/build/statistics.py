"""The statistics of train rows, gathered while the rows stream by, and what is odd about them.

Axes: N rows, F numeric features, T targets, S distinct strings, E width of their vectors, W columns
of whatever kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from embedcache.build.moments import (
    ROWS_AT_ONCE,
    Moments,
    feature_scaling,
    floats,
    vector_scaling,
)
from embedcache.build.sample import RowSample
from embedcache.cache.layout import Layout, RowBlock, StringTable
from embedcache.config.columns import NumericColumn
from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.errors import SplitError
from embedcache.scaling import Scaling, transformed

# by which data loggers and old programs mark what was not measured
MARKS_OF_MISSING = {-99.0, -999.0, -9999.0, -99999.0, 9999.0, 99999.0, 999999.0}

MOST_NAMED = 3  # classes in one line
MOST_KNOTS = 1001  # of a target's quantile transform
MOST_FEATURE_KNOTS = 257  # of each feature, in the cache and in every checkpoint


def _quantiles(held: Float[np.ndarray, " _"], most: int) -> tuple[float, ...]:
    """Return the values at the middles of equal shares of rows, of few rows each of them."""
    held = held.astype(np.float64)
    if not len(held):  # the split's check refuses such a target
        return (0.0,)
    num_knots = min(most, len(held))
    shares = (np.arange(num_knots) + 0.5) / num_knots
    knots = np.quantile(held, shares, method="hazen")  # of few rows each value itself
    knots[[0, -1]] = held.min(), held.max()  # all train rows have a score of their own
    return floats(knots)


_RANKED = Scaling.of_targets([TargetColumn(name="y", column="y", transform="quantile")])


def _moments_of_scores(
    scaling: Scaling, labels: list[Float[np.ndarray, " _"]]
) -> tuple[float, float]:
    """Return the mean and the spread of one target's normal scores, or of one feature's."""
    moments = Moments(1)
    for block in labels:
        for first in range(0, len(block), ROWS_AT_ONCE):
            raw = torch.from_numpy(block[first : first + ROWS_AT_ONCE]).double()
            moments.add(scaling.as_learnt(raw.unsqueeze(1)).numpy())
    return float(moments.mean[0]), float(moments.std[0])


def _classes_without_rows(target: TargetColumn, counts: Int[np.ndarray, " K"]) -> list[str]:
    """Return a line on the classes that no train row has."""
    pairs = zip(target.classes or (), counts, strict=True)
    missing = [name for name, count in pairs if not count]
    if not missing:
        return []
    more = ", ..." if len(missing) > MOST_NAMED else ""
    named = ", ".join(map(repr, missing[:MOST_NAMED])) + more
    return [f"target column '{target.column}': no train row has class {named}"]


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

    Medians and the quantiles of targets are exact, so the values of features that a median fills,
    and the labels of targets with transform quantile, are held: 4 bytes a row each. Quantiles of
    features are those of a sample of the rows, of all where they are few (see `RowSample`).
    """

    def __init__(self, numeric: Sequence[NumericColumn], targets: Sequence[TargetColumn]) -> None:
        """Start with no rows."""
        self._numeric = tuple(numeric)
        self._transforms = tuple(column.transform for column in numeric)
        self._targets = tuple(targets)
        self._low = np.full(len(self._numeric), np.inf)  # of raw values
        self._high = np.full(len(self._numeric), -np.inf)
        self._averaged = [f for f, column in enumerate(numeric) if column.fill == "mean"]
        self._raw = Moments(len(self._averaged))  # of those that a mean fills
        self._features = Moments(len(self._numeric))
        self._sample = RowSample(len(self._numeric))
        self._plain = Scaling.of_targets(self._targets)
        self._labels = Moments(len(self._targets))
        self._ranked: dict[int, list[Float[np.ndarray, " N"]]] = {
            t: [] for t, target in enumerate(targets) if target.transform == "quantile"
        }
        self._per_class = {
            t: np.zeros(len(target.classes or ()), dtype=np.int64)
            for t, target in enumerate(targets)
            if target.has_codes
        }
        self._held: dict[int, list[Float[np.ndarray, " N"]]] = {
            f: [] for f, column in enumerate(numeric) if column.fill in ("median", "indicator")
        }

    def add(self, numeric: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N T"]) -> None:
        """Merge train rows: raw features, NaN where missing, and labels, NaN where unobserved."""
        if len(numeric):
            self._low = np.fmin(self._low, np.fmin.reduce(numeric, axis=0))
            self._high = np.fmax(self._high, np.fmax.reduce(numeric, axis=0))
        self._sample.add(numeric)
        for f, values in self._held.items():
            values.append(numeric[~np.isnan(numeric[:, f]), f])
        for t, values in self._ranked.items():
            values.append(targets[~np.isnan(targets[:, t]), t])
        for t, counts in self._per_class.items():
            codes = targets[~np.isnan(targets[:, t]), t].astype(np.int64)
            counts += np.bincount(codes, minlength=len(counts))
        for first in range(0, len(numeric), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            features = torch.from_numpy(numeric[rows]).double()
            self._raw.add(numeric[rows][:, self._averaged])
            self._features.add(transformed(features, self._transforms).numpy())
            labels = torch.from_numpy(targets[rows]).double()
            self._labels.add(self._plain.as_learnt(labels).numpy())

    def remarks(self) -> list[str]:
        """Return what a reader should know of the features' and labels' values in train rows."""
        lines = []
        for f, column in enumerate(self._numeric):
            what, count = f"numeric column '{column.column}'", int(self._features.count[f])
            if count and self._features.spread[f] == 0:
                lines.append(f"{what} has one value in all train rows, {self._low[f]:g}")
            elif column.transform != "quantile" and self._features.is_flattened(f):
                advice = "" if column.transform != "identity" else "; a transform, or a wrong unit?"
                lines.append(
                    f"{what} is so skewed that a few values flatten the others: train rows have"
                    f" {self._low[f]:g} to {self._high[f]:g}{advice}"
                )
            lines += _marks_of_missing(what, self._low[f], self._high[f])
        for t, target in enumerate(self._targets):
            if t in self._per_class:
                lines += _classes_without_rows(target, self._per_class[t])
            if target.transform != "standardize" or target.kind != "regression":
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

    def result(
        self,
        vectors: Mapping[str, Float[np.ndarray, "S E"]] | None = None,
        features: Mapping[str, Float[np.ndarray, "S K"]] | None = None,
    ) -> Scaling:
        """Return the statistics of all rows added so far.

        `vectors` and `features` are those of the distinct strings that train, by string column.
        """
        for t, counts in self._per_class.items():
            if (counts > 0).sum() < 2:
                raise SplitError(
                    f"the train rows hold only one class of '{self._targets[t].name}'; try another"
                    " split.seed or split.rotation, or another strategy"
                )
        quantiles = {
            t: _quantiles(np.concatenate(held), MOST_KNOTS) for t, held in self._ranked.items()
        }
        means, stds = self._labels.mean.copy(), self._labels.std.copy()
        plain = replace(self._plain, quantiles=quantiles)
        for t in quantiles:
            means[t], stds[t] = _moments_of_scores(plain.of_target(t), self._ranked[t])
        labels = list(zip(self._targets, means, stds, strict=True))
        feature_means, feature_stds = self._features.mean.copy(), self._features.std.copy()
        knots = []
        for f, values in enumerate(self._sample.columns()):
            knots.append(_quantiles(values, MOST_FEATURE_KNOTS))
            if self._transforms[f] == "quantile":
                of_one = replace(_RANKED, quantiles={0: knots[f]})
                feature_means[f], feature_stds[f] = _moments_of_scores(of_one, [values])
        return Scaling(
            columns=tuple(column.column for column in self._numeric),
            transforms=self._transforms,
            mean=floats(feature_means),
            std=floats(feature_stds),
            low=floats(np.where(self._features.count > 0, self._low, 0.0)),
            high=floats(np.where(self._features.count > 0, self._high, 0.0)),
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
            target_transforms=self._plain.target_transforms,
            quantiles=quantiles,
            class_rates={
                self._targets[t].name: floats(counts / max(1, counts.sum()))
                for t, counts in self._per_class.items()
            },
            vectors={name: vector_scaling(values) for name, values in (vectors or {}).items()},
            knots=tuple(knots),
            string_features={
                name: feature_scaling(values) for name, values in (features or {}).items()
            },
        )


class TrainStatistics:
    """Gathers the Scaling of a cache from its blocks of rows, of which only train rows count.

    Statistics of vectors count each string of a train row once. Strings and categories of other
    rows alone are listed: nothing was learnt of them.
    """

    def __init__(self, layout: Layout) -> None:
        """Start with no rows."""
        self.fit = ScalingFit(layout.numeric, layout.targets)
        self._trained = {
            spec.name: np.zeros(spec.num_strings, dtype=bool) for spec in layout.strings
        }
        self._categories = {
            column: np.zeros(len(values), dtype=bool) for column, values in layout.categories
        }

    def add(self, block: RowBlock) -> None:
        """Merge the train rows of one block."""
        is_train = block.split == SPLITS.index("train")
        self.fit.add(block.numeric[is_train], block.targets[is_train])
        for column, is_trained in enumerate(self._trained.values()):
            is_trained[block.string_id[is_train, column]] = True
        for column, is_trained in enumerate(self._categories.values()):
            is_trained[block.category[is_train, column]] = True

    def scaling(self, strings: Mapping[str, StringTable]) -> Scaling:
        """Return the statistics of all train rows; `strings` are all strings, by column."""
        trained = self._trained.items()
        scaling = self.fit.result(
            {
                name: strings[name].embeddings.numpy()[is_train]
                for name, is_train in trained
                if strings[name].embeddings.shape[1]
            },
            {
                name: strings[name].features.numpy()[is_train]
                for name, is_train in trained
                if strings[name].features.shape[1]
            },
        )
        return replace(
            scaling,
            untrained_strings=_absent(self._trained),
            untrained_categories=_absent(self._categories),
        )


def _absent(present: Mapping[str, Bool[np.ndarray, " _"]]) -> dict[str, tuple[int, ...]]:
    """Return the places without, of the columns that have some."""
    places = {name: tuple(np.flatnonzero(~found).tolist()) for name, found in present.items()}
    return {name: absent for name, absent in places.items() if absent}
