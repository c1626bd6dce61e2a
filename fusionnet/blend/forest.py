"""Boosted trees as plain arrays: what they predict, on any device, without the library that grew
them.

A node that splits sends a row to the left where its column is at most the threshold, or missing and
missing goes left. Children have larger numbers than their node, so a walk always ends.

Axes: B rows, C columns, N nodes of all trees, R trees, K outputs (one, or one per class).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

ROWS_AT_ONCE = 4_194_304  # of rows times trees: a walk's working memory is some 100 MB


@dataclass(frozen=True)
class Forest:
    """R trees, node by node; tree r adds to output r % K."""

    column: Int64[Tensor, " N"]  # that a node splits; -1 for a leaf
    threshold: Float64[Tensor, " N"]
    missing_left: Bool[Tensor, " N"]
    left: Int64[Tensor, " N"]  # of a leaf: itself
    right: Int64[Tensor, " N"]
    value: Float64[Tensor, " N"]  # of a leaf
    root: Int64[Tensor, " R"]
    num_outputs: int

    def __call__(self, x: Float[Tensor, "B C"]) -> Float64[Tensor, "B K"]:
        """Return the sums of the trees' leaves: numbers, or logits."""
        if not len(self.root):
            return torch.zeros(len(x), self.num_outputs, dtype=torch.float64, device=x.device)
        step = max(1, ROWS_AT_ONCE // len(self.root))
        parts = [self._walked(part) for part in x.split(step)] or [self._walked(x)]
        return torch.cat(parts)

    def _walked(self, x: Float[Tensor, "B C"]) -> Float64[Tensor, "B K"]:
        node = self.root.expand(len(x), -1)  # [B, R]
        while bool(((column := self.column[node]) >= 0).any()):  # a leaf leads to itself
            found = x.gather(1, column.clamp_min(0))
            goes_left = torch.where(
                found.isnan(), self.missing_left[node], found <= self.threshold[node]
            )
            node = torch.where(goes_left, self.left[node], self.right[node])
        leaves = self.value[node].unflatten(1, (-1, self.num_outputs))
        return leaves.sum(1)

    def to(self, device: torch.device | str) -> "Forest":
        """Return the same trees on a device."""
        moved: dict[str, Any] = {name: each.to(device) for name, each in self.tensors().items()}
        return replace(self, **moved)

    def of_columns(self, numbers: Int[np.ndarray, " c"]) -> "Forest":
        """Return the same trees over more columns, of which these are their own."""
        own = torch.from_numpy(numbers).to(self.column)
        is_split = self.column >= 0
        return replace(self, column=torch.where(is_split, own[self.column * is_split], self.column))

    def tensors(self) -> dict[str, Tensor]:
        """Return all arrays by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], num_outputs: int, num_columns: int
    ) -> "Forest":
        """Return the trees in these arrays; raises ValueError for what are no trees.

        `num_columns` are those that they may split.
        """
        wanted = {
            "column": torch.int64,
            "threshold": torch.float64,
            "missing_left": torch.bool,
            "left": torch.int64,
            "right": torch.int64,
            "value": torch.float64,
            "root": torch.int64,
        }
        found = {name: each.dtype for name, each in tensors.items() if each.dim() == 1}
        if found != wanted:
            raise ValueError(f"expected the arrays {', '.join(wanted)} of a forest")
        if not _are_trees(tensors, num_outputs, num_columns):
            raise ValueError("the arrays are no trees: nodes, columns or values are out of range")
        return cls(**tensors, num_outputs=num_outputs)


def _are_trees(tensors: Mapping[str, Tensor], num_outputs: int, num_columns: int) -> bool:
    """Return whether every walk ends in a leaf, by columns that there are."""
    column, root = tensors["column"], tensors["root"]
    num_nodes = len(column)
    if {len(each) for name, each in tensors.items() if name != "root"} != {num_nodes}:
        return False
    own, splits = torch.arange(num_nodes, device=column.device), column >= 0
    children = (tensors["left"], tensors["right"])
    return (
        len(root) % num_outputs == 0
        and bool(((column >= -1) & (column < num_columns)).all())
        and all(_within(each, num_nodes) for each in (*children, root))
        and all(bool((each[splits] > own[splits]).all()) for each in children)
        and all(bool((each[~splits] == own[~splits]).all()) for each in children)
        and all(bool(tensors[name].isfinite().all()) for name in ("value", "threshold"))
    )


def _within(numbers: Int64[Tensor, " _"], end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


def joined(forests: Sequence[Forest], weights: Sequence[float]) -> Forest:
    """Return the weighted sum of several forests of the same outputs as one."""
    tensors: dict[str, list[Tensor]] = {}
    start = 0
    for forest, weight in zip(forests, weights, strict=True):
        moved = {"left": forest.left + start, "right": forest.right + start}
        moved |= {"root": forest.root + start, "value": forest.value * weight}
        for name, each in (forest.tensors() | moved).items():
            tensors.setdefault(name, []).append(each)
        start += len(forest.column)
    together: dict[str, Any] = {name: torch.cat(parts) for name, parts in tensors.items()}
    return Forest(**together, num_outputs=forests[0].num_outputs)
