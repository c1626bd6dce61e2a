"""What a machine's matrix products allow: the network's largest products alone, and the operations
of a row.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from fusionnet.config.model import ModelConfig
from fusionnet.model.constant import ConstantLinear
from fusionnet.model.evaluator import CPU_BLOCK_ROWS
from fusionnet.model.network import FusionNetwork
from fusionnet.recipe import Recipe


class Products(NamedTuple):
    """Matrix products to time, and their operations."""

    run: Callable[[], object]
    flop: int


def roofline(model: ModelConfig, dtype: torch.dtype, num_times: int = 4) -> Products:
    """Return the feed-forward network's two products, on a block of rows, some times."""
    rows, (narrow, wide) = CPU_BLOCK_ROWS, (model.fusion_width, model.feedforward)
    x, h = torch.randn(rows, narrow, dtype=dtype), torch.randn(rows, wide, dtype=dtype)
    up, down = (
        ConstantLinear(torch.randn(wide, narrow, dtype=dtype), None),
        ConstantLinear(torch.randn(narrow, wide, dtype=dtype), None),
    )
    return Products(
        lambda: [(up(x), down(h)) for _ in range(num_times)],
        num_times * 2 * 2 * rows * narrow * wide,
    )


def flop_per_row(network: FusionNetwork, recipe: Recipe) -> int:
    """Return the operations in the evaluator's matrix products for one row.

    2 for each weight that a row meets; strings and categories are not counted.
    """
    model, num_features = recipe.model, len(network.numeric.feature_order)
    numeric = (
        num_features * model.numeric_hidden
        + model.numeric_hidden * model.numeric_width
        + model.numeric_width * model.fusion_width
    )
    layers = (
        model.num_layers * 2 * model.fusion_width * model.feedforward
        + max(0, model.num_layers - 1) * model.fusion_width**2
    )
    heads = sum(
        wide * narrow
        for task in recipe.tasks
        for wide, narrow in pairwise((model.fusion_width, *task.head, 1))
    )
    skip = num_features * len(recipe.tasks) if model.linear_skip else 0
    return 2 * (numeric + layers + heads + skip)
