"""Rows as training has them, held to the same rows of the cache, read and scaled once more."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.scaling import CELSIUS_ZERO_K, Scaling
from fusionnet.rows.tensors import RowTable

_TOLERANCE = 1e-5  # of standardised features, which are rounded to fp32


def num_differing(rows: RowTable, cache: Cache) -> int:
    """Return how many of the rows, on the CPU, are not what the cache holds under their number."""
    return sum(
        not _is_row(rows.take(slice(place, place + 1)), cache.rows(number, number + 1), cache)
        for place, number in enumerate(rows.row.tolist())
    )


def _is_row(row: RowTable, block: RowBlock, cache: Cache) -> bool:
    """Return whether the one row of the table is the one row of the block, and trains."""
    features = _standardised(block.numeric, cache.scaling)
    return (
        block.split.tolist() == [SPLITS.index("train")]
        and row.string_id.tolist() == block.string_id.tolist()
        and row.category.tolist() == block.category.tolist()
        and _same_targets(row.targets.numpy(), block.targets, cache.layout.targets, cache.scaling)
        and np.array_equal(row.weight.numpy(), block.weight)
        and np.allclose(row.numeric.numpy(), features, rtol=_TOLERANCE, atol=_TOLERANCE)
    )


def _same_targets(
    found: Float[np.ndarray, "1 T"],
    raw: Float[np.ndarray, "1 T"],
    columns: Sequence[TargetColumn],
    scaling: Scaling,
) -> bool:
    """Return whether targets are the cache's, bitwise where no transform rounds them."""
    for number, column in enumerate(columns):
        x = raw[:, number].astype(np.float64)
        match column.transform:
            case "standardize":
                tolerance = 0.0
            case "quantile":
                x, tolerance = _normal_scores(x, scaling.quantiles[number]), _TOLERANCE
            case "log10":
                x, tolerance = np.log10(x), _TOLERANCE
            case "log1p":
                x, tolerance = np.log1p(x), _TOLERANCE
        if not np.allclose(found[:, number], x, rtol=tolerance, atol=tolerance, equal_nan=True):
            return False
    return True


def _normal_scores(
    labels: Float[np.ndarray, " _"], quantiles: Sequence[float]
) -> Float[np.ndarray, " _"]:
    """Return normal scores of labels or features, linear between those of the quantiles."""
    num_knots = len(quantiles)
    scores = np.array([NormalDist().inv_cdf((k + 0.5) / num_knots) for k in range(num_knots)])
    knots = np.unique(quantiles)
    means = [scores[np.equal(quantiles, knot)].mean() for knot in knots]
    return np.where(np.isnan(labels), labels, np.interp(labels, knots, means))


def _standardised(raw: Float[np.ndarray, "1 F"], scaling: Scaling) -> Float[np.ndarray, "1 F"]:
    columns = []
    for number, transform in enumerate(scaling.transforms):
        x = raw[:, number].astype(np.float64)
        fill = scaling.fill[number]
        if fill is not None:
            x = np.nan_to_num(x, nan=fill)
        match transform:
            case "log10":
                x = np.log10(x)
            case "log1p":
                x = np.log1p(x)
            case "inverse_kelvin":
                x = 1000.0 / (x + CELSIUS_ZERO_K)
            case "quantile":
                x = _normal_scores(x, scaling.knots[number])
        columns.append((x - scaling.mean[number]) / scaling.std[number])
    return np.stack(columns, axis=1) if columns else np.empty((len(raw), 0))
