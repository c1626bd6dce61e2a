"""Transforms and standardisation of numeric features, string vectors and targets.

Their statistics are those of train rows only (`build.statistics` gathers them).

The cache holds raw values in their own units; scaling is applied when rows are read, so that a
cache can be inspected in the units of its table and a checkpoint carries what it needs to predict
from raw values. Validation and test rows never enter a statistic, hence changing them changes
nothing here.

Axes: B or N rows, F numeric features, T targets, M knots, W columns of whatever kind, K bins.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from embedcache.config.columns import Transform
from embedcache.config.targets import TargetColumn, TargetTransform

CELSIUS_ZERO_K = 273.15
# values must lie above, not on
DOMAIN_LOW: dict[str, float] = {
    "log10": 0.0,
    "log1p": -1.0,
    "inverse_kelvin": -CELSIUS_ZERO_K,
}

# Standardised features beyond this are refused: layer norms sum squares over a row's width, with
# weights in front, and float32 ends at 3e38. Far outside of the train rows begins long before.
LARGEST_STANDARDISED = 1e15

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log10": torch.log10,
    "log1p": torch.log1p,
    "inverse_kelvin": lambda celsius: 1000.0 / (celsius + CELSIUS_ZERO_K),
}
# rounding does not take a value out of the domain, where its transform would be infinite
_INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "log10": lambda x: torch.pow(10.0, x).clamp_min(torch.finfo(x.dtype).tiny),
    "log1p": lambda x: torch.expm1(x).clamp_min(torch.finfo(x.dtype).eps / 2 - 1),
}


def transformed(numeric: Float[Tensor, "B F"], transforms: Sequence[str]) -> Float[Tensor, "B F"]:
    """Return the features, or targets, with their transforms applied.

    `inverse_kelvin` is 1000 / T, for T given in degrees Celsius.
    """
    return _by_column(numeric, transforms, _FUNCTIONS)


def undone(targets: Float[Tensor, "B T"], transforms: Sequence[str]) -> Float[Tensor, "B T"]:
    """Return transformed targets in their own units, always inside of the transform's domain.

    What is too large for the type becomes infinite.
    """
    return _by_column(targets, transforms, _INVERSES)


def normal_scores(num_knots: int) -> Float64[Tensor, " M"]:
    """Return the normal scores of M values in order, those of the middles of M equal shares.

    Van der Waerden's, with Hazen's plotting positions.
    """
    return torch.special.ndtri((torch.arange(num_knots, dtype=torch.float64) + 0.5) / num_knots)


def interpolated(
    x: Float[Tensor, "*B"], knots: Float[Tensor, " M"], values: Float[Tensor, " M"]
) -> Float[Tensor, "*B"]:
    """Return the function that is linear between ascending knots, and constant beyond them.

    NaN stays; differentiable with respect to x.
    """
    if len(knots) == 1:
        return 0 * x + values[0]
    above = _num_below(knots, x.detach()).clamp(1, len(knots) - 1)
    low, high = knots[above - 1], knots[above]
    share = ((x - low) / (high - low)).clamp(0, 1)
    return values[above - 1] + share * (values[above] - values[above - 1])


def _num_below(knots: Float[Tensor, " M"], x: Float[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
    """Return how many of the ascending knots lie below each number."""
    if torch.compiler.is_exporting():  # a program for elsewhere counts: ONNX cannot search
        return (knots < x.unsqueeze(-1)).sum(-1)
    return torch.searchsorted(knots, x.contiguous())


def scored(
    knots: Sequence[float], like: Float[Tensor, "B W"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Return the M distinct values between which a quantile transform is linear, and their normal
    scores; equal values share the mean of theirs.
    """
    if not torch.compiler.is_exporting():
        return _scored_as(knots, like.dtype, like.device)
    with _disable_current_modes():  # they decide sizes, so they are constants, not traced
        return _scored_as(knots, like.dtype, like.device)


def _scored_as(
    knots: Sequence[float], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    raw = torch.tensor(knots, dtype=torch.float64)
    values, same = raw.unique(return_inverse=True)
    scores = torch.zeros_like(values).index_add(0, same, normal_scores(len(raw)))
    scores /= torch.bincount(same)
    # float32 may not tell neighbours apart, and a step between equal knots has no slope
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[1:] = values.to(dtype).diff() > 0
    return values[kept].to(device, dtype), scores[kept].to(device, dtype)


def _by_column(
    values: Float[Tensor, "B W"],
    transforms: Sequence[str],
    functions: Mapping[str, Callable[[Tensor], Tensor]],
) -> Float[Tensor, "B W"]:
    """Return the values with the function of its transform applied to each column."""
    result = values.clone()
    for name, function in functions.items():
        columns = [number for number, transform in enumerate(transforms) if transform == name]
        if columns:
            result[:, columns] = function(values[:, columns])
    return result


@dataclass(frozen=True)
class VectorScaling:
    """What standardises the vectors of one string column: mean and spread per dimension.

    They are taken over the distinct strings that have train rows. Vectors of one encoder have most
    of their length in common, whatever the string (measured on polyBERT's architecture: see
    benchmarks/results/LOG.md); without this a network must learn small differences on top of a
    large constant.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


CLIP = 3.0  # which features of strings approach and never pass


@dataclass(frozen=True)
class FeatureScaling:
    """What turns the raw features of one string column into inputs: a robust scale, a smooth clip.

    It is that of RealMLP (Holzmueller et al. 2024, arXiv 2407.04491, section 3): z = (x - center) *
    scale, then z / sqrt(1 + (z / 3)^2). The statistics are those of the distinct strings that have
    train rows; a missing value becomes their median, which is the center, hence 0.
    """

    center: tuple[float, ...]  # median
    # 1 / (upper - lower quartile); where they are equal 2 / (greatest - least); 0 for a constant
    scale: tuple[float, ...]

    def apply(self, features: Float[Tensor, "S K"]) -> Float[Tensor, "S K"]:
        """Return raw features as float32 inputs between -3 and 3; none is NaN.

        Computed in float64 on the CPU: squares of what float32 holds are beyond it.
        """
        center, scale = (
            torch.tensor(each, dtype=torch.float64) for each in (self.center, self.scale)
        )
        z = (features.double().cpu() - center) * scale
        return (z / (1 + (z / CLIP).square()).sqrt()).nan_to_num(nan=0.0).float()


@dataclass(frozen=True)
class Scaling:
    """What turns raw features into model inputs, and raw targets into standardised ones."""

    columns: tuple[str, ...]
    transforms: tuple[Transform, ...]
    mean: tuple[float, ...]  # per feature, of the transformed train rows
    std: tuple[float, ...]  # 1 for a feature that is constant in the train rows
    # raw train values that a feature has; 0 and 0 where it has none
    low: tuple[float, ...]
    high: tuple[float, ...]
    fill: tuple[float | None, ...]  # the raw value that a missing one stands for; None: none is
    # per target of the cache, of the transformed observed train labels; of classes: 0
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]  # of classes: 1
    positive_rate: dict[str, float]  # by name of each binary target, over observed train labels
    target_transforms: tuple[TargetTransform, ...] = ()
    # by place of a target with transform quantile: labels at the middles of equal shares of rows
    quantiles: dict[int, tuple[float, ...]] = field(default_factory=dict)
    # by name of each target of several classes: their shares of the observed train labels
    class_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    # by string column, of the vectors that the cache holds
    vectors: dict[str, VectorScaling] = field(default_factory=dict)
    # per feature: raw values at the middles of equal shares of the train rows that have one, from
    # the least to the greatest
    knots: tuple[tuple[float, ...], ...] = ()
    # by string column, of its features
    string_features: dict[str, FeatureScaling] = field(default_factory=dict)
    # ids of the strings, and codes of the categories, that no train row has, by column
    untrained_strings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    untrained_categories: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def apply(self, numeric: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """Return raw features as standardised float32, on the same device; differentiable.

        Computed in float64 where the device has it: a mean that is large beside the spread would
        cost float32 its digits.
        """
        wide = torch.float32 if numeric.device.type == "mps" else torch.float64
        mean, std = (
            torch.tensor(values, dtype=wide, device=numeric.device)
            for values in (self.mean, self.std)
        )
        known = self._filled(numeric.to(wide))
        result = transformed(known, self.transforms)
        for place, transform in enumerate(self.transforms):
            if transform == "quantile":
                values, scores = scored(self.knots[place], known)
                result[:, place] = interpolated(known[:, place], values, scores)
        return ((result - mean) / std).float()

    def bin_edges(self, num_bins: int) -> list[list[float]]:
        """Return per feature the distinct standardised edges of at most K bins, ascending.

        Between them lie about equal shares of the train rows that have a value. A feature with one
        value has an edge half a spread below it, and one above.
        """
        columns = [
            [knots[round(k * (len(knots) - 1) / num_bins)] for k in range(num_bins + 1)]
            for knots in self.knots
        ]
        with torch.device("cpu"):  # a network may be made where there are no values (meta)
            raw = torch.tensor(columns, dtype=torch.float64).reshape(len(columns), num_bins + 1)
            edges = [column.unique().tolist() for column in self.apply(raw.T).T]
        return [each if len(each) > 1 else [each[0] - 0.5, each[0] + 0.5] for each in edges]

    @staticmethod
    def of_targets(targets: Sequence[TargetColumn]) -> "Scaling":
        """Return what knows the targets' transforms, and no statistics yet."""
        nothing = (0.0,) * len(targets)
        transforms = tuple(target.transform for target in targets)
        none: dict[str, float] = {}
        return Scaling((), (), (), (), (), (), (), nothing, nothing, none, transforms)

    def as_learnt(self, targets: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return raw labels with their transforms applied; NaN, for none, stays."""
        result = transformed(targets, self.target_transforms)
        for place in self.quantiles:
            labels, scores = scored(self.quantiles[place], targets)
            result[:, place] = interpolated(targets[:, place], labels, scores)
        return result

    def in_units(self, targets: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return transformed labels in the targets' own units; see `undone`."""
        result = undone(targets, self.target_transforms)
        for place in self.quantiles:
            labels, scores = scored(self.quantiles[place], targets)
            result[:, place] = interpolated(targets[:, place], scores, labels)
        return result

    def of_target(self, place: int) -> "Scaling":
        """Return what `as_learnt` and `in_units` need for one target alone."""
        quantiles = {0: self.quantiles[place]} if place in self.quantiles else {}
        return replace(
            self, target_transforms=(self.target_transforms[place],), quantiles=quantiles
        )

    def _filled(self, numeric: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """Return raw features with what stands for the missing ones (NaN)."""
        if all(value is None for value in self.fill):
            return numeric
        nan = float("nan")
        fill = numeric.new_tensor([nan if value is None else value for value in self.fill])
        return torch.where(numeric.isnan(), fill, numeric)

    def is_outside(self, numeric: Float[Tensor, "B F"]) -> Bool[Tensor, "B F"]:
        """Return which raw features lie outside of what the train rows have; missing ones do not.

        Compared as they are stored, in float32.
        """
        low, high = (
            torch.tensor(values, dtype=torch.float32, device=numeric.device)
            for values in (self.low, self.high)
        )
        return (numeric < low) | (numeric > high)

    def reach(self) -> dict[str, tuple[float, float]]:
        """Return by column between which raw values the network can compute in float32.

        Transforms shrink all values so far that only columns without one have such bounds.
        """
        columns = zip(self.columns, self.transforms, self.mean, self.std, strict=True)
        return {
            name: (mean - LARGEST_STANDARDISED * std, mean + LARGEST_STANDARDISED * std)
            for name, transform, mean, std in columns
            if transform == "identity"
        }

    def to_json(self) -> str:
        """Return all numbers as JSON text; floats survive the round trip exactly."""
        return json.dumps(asdict(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Scaling":
        """Return what `to_json` wrote; raises ValueError for what no scaling is."""
        scaling = TypeAdapter(Scaling).validate_json(text)
        _refuse_impossible(scaling)
        return scaling


def _refuse_impossible(scaling: Scaling) -> None:
    """Raise ValueError for statistics of different lengths, not finite, or a spread of 0."""
    vectors = scaling.vectors.values()
    of_columns = (scaling.transforms, scaling.mean, scaling.low, scaling.high, scaling.fill)
    if any(len(values) != len(scaling.columns) for values in (*of_columns, scaling.knots)):
        raise ValueError("columns have statistics of different lengths")
    pairs = [(scaling.mean, scaling.std), (scaling.target_mean, scaling.target_std)]
    pairs += [(each.mean, each.std) for each in vectors]
    known = [value for value in scaling.fill if value is not None]
    if any(len(mean) != len(std) for mean, std in pairs):
        raise ValueError("means and spreads have different lengths")
    numbers = [*(value for pair in pairs for part in pair for value in part), *known]
    numbers += [*scaling.low, *scaling.high]
    numbers += [
        value for each in scaling.string_features.values() for value in (*each.center, *each.scale)
    ]
    numbers += [value for values in scaling.quantiles.values() for value in values]
    numbers += [rate for rates in scaling.class_rates.values() for rate in rates]
    if len(scaling.target_transforms) != len(scaling.target_mean):
        raise ValueError("targets have another number of transforms than of means")
    are_quantiles = [k for k, each in enumerate(scaling.target_transforms) if each == "quantile"]
    if are_quantiles != sorted(scaling.quantiles) or not all(scaling.quantiles.values()):
        raise ValueError("quantiles are not those of the targets with that transform")
    if any(not 0 <= rate <= 1 for rates in scaling.class_rates.values() for rate in rates):
        raise ValueError("a class has a share of the labels that is not between 0 and 1")
    numbers += [value for values in scaling.knots for value in values]
    if not all(map(math.isfinite, [*numbers, *scaling.positive_rate.values()])):
        raise ValueError("statistics hold NaN or infinity")
    if any(not knots or list(knots) != sorted(knots) for knots in scaling.knots):
        raise ValueError("a feature's knots are not in order, or there are none")
    if any(value <= 0 for _, std in pairs for value in std):
        raise ValueError("a spread is not above 0")
    for each in scaling.string_features.values():
        if len(each.center) != len(each.scale) or any(value < 0 for value in each.scale):
            raise ValueError("features of strings have scales below 0, or of another length")
    if not all(0 < rate < 1 for rate in scaling.positive_rate.values()):
        raise ValueError("a binary target's positive rate is not between 0 and 1")
