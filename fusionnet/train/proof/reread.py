"""Rows as training has them, held to the same rows of the cache, read and scaled once more."""

import numpy as np
from jaxtyping import Float

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
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
        and np.array_equal(row.targets.numpy(), block.targets, equal_nan=True)
        and np.array_equal(row.weight.numpy(), block.weight)
        and np.allclose(row.numeric.numpy(), features, rtol=_TOLERANCE, atol=_TOLERANCE)
    )


def _standardised(raw: Float[np.ndarray, "1 F"], scaling: Scaling) -> Float[np.ndarray, "1 F"]:
    columns = []
    for number, transform in enumerate(scaling.transforms):
        x = raw[:, number].astype(np.float64)
        match transform:
            case "log10":
                x = np.log10(x)
            case "log1p":
                x = np.log1p(x)
            case "inverse_kelvin":
                x = 1000.0 / (x + CELSIUS_ZERO_K)
        columns.append((x - scaling.mean[number]) / scaling.std[number])
    return np.stack(columns, axis=1) if columns else np.empty((len(raw), 0))
