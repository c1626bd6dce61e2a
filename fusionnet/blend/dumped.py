"""The trees of a model of LightGBM as a Forest, read from what the library dumps of them."""

from typing import Any

import lightgbm
import torch

from fusionnet.blend.forest import Forest

# a node's children
_LEFT, _RIGHT = "left_child", "right_child"


def forest_of(booster: lightgbm.Booster, num_outputs: int) -> Forest:
    """Return a trained model's trees, up to its best iteration."""
    dump = booster.dump_model(num_iteration=booster.best_iteration)
    nodes = _Nodes()
    roots = [nodes.add(tree["tree_structure"]) for tree in dump["tree_info"]]
    return Forest(
        column=torch.tensor(nodes.column),
        threshold=torch.tensor(nodes.threshold, dtype=torch.float64),
        missing_left=torch.tensor(nodes.missing_left),
        left=torch.tensor(nodes.left),
        right=torch.tensor(nodes.right),
        value=torch.tensor(nodes.value, dtype=torch.float64),
        root=torch.tensor(roots),
        num_outputs=num_outputs,
    )


class _Nodes:
    """The nodes of all trees, parents before their children."""

    def __init__(self) -> None:
        self.column: list[int] = []
        self.threshold: list[float] = []
        self.missing_left: list[bool] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.value: list[float] = []

    def add(self, tree: dict[str, Any]) -> int:
        """Append one tree's nodes and return the number of its root."""
        root = len(self.column)
        waiting = [(tree, -1, "")]
        while waiting:
            node, parent, side = waiting.pop()
            number = self._append(node)
            if side:
                (self.left if side == _LEFT else self.right)[parent] = number
            if "split_feature" in node:
                waiting += [(node[side], number, side) for side in (_RIGHT, _LEFT)]
        return root

    def _append(self, node: dict[str, Any]) -> int:
        number = len(self.column)
        is_split = "split_feature" in node
        assert not is_split or node["decision_type"] == "<=", "no column is categorical"
        self.column.append(node["split_feature"] if is_split else -1)
        self.threshold.append(node["threshold"] if is_split else 0.0)
        self.missing_left.append(is_split and _missing_goes_left(node))
        self.left.append(number)
        self.right.append(number)
        self.value.append(0.0 if is_split else node["leaf_value"])
        return number


def _missing_goes_left(node: dict[str, Any]) -> bool:
    """Return where a missing value goes: where none was seen in training it counts as 0."""
    if node["missing_type"] == "NaN":
        return bool(node["default_left"])
    return bool(node["threshold"] >= 0)
