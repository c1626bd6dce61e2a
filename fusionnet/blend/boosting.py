"""Trees grown by LightGBM (Ke et al. 2017) on the train rows of one target.

One model is grown on each all-but-one part of the rows, whose left-out part says when trees no
longer help; what is predicted is the mean of their outputs. So all train rows are learned from, and
validation rows are left for the weights.

Axes: n train rows, C columns, K outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import torch
from jaxtyping import Float, Int

from fusionnet.blend.forest import Forest, joined
from fusionnet.config.blend import BlendConfig
from fusionnet.config.tasks import Task

PATIENCE = 50  # trees without a gain on left-out rows, after which no more are added
_OBJECTIVES = {"regression": "regression", "binary": "binary", "multiclass": "multiclass"}
MOST_BINS = 63  # of a column: no worse than 255 on five tables, in half the time where it is wide
# a node's children in LightGBM's dump of a tree
_LEFT, _RIGHT = "left_child", "right_child"


@dataclass(frozen=True)
class TrainRows:
    """What trees learn from: labels are as they are learnt, or class numbers."""

    x: Float[np.ndarray, "n C"]
    label: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]  # rows of one part stay together

    def take(self, chosen: Any) -> "TrainRows":
        """Return the rows at these positions."""
        return TrainRows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def grown(
    config: BlendConfig,
    task: Task,
    rows: TrainRows,
    validation: TrainRows,
    seed: int,
    num_threads: int,
) -> Forest:
    """Return the trees of one task; one class, or one value, alone is a leaf."""
    label = rows.label
    if len(np.unique(label)) == 1:
        return _constant(task, float(label[0]))
    parameters = _parameters(config, task, seed, num_threads)
    forests = [
        _grown(parameters, config.most_trees, own, judge, task.num_classes)
        for own, judge in _parts(config, rows, validation)
    ]
    return joined(forests)


def _parts(
    config: BlendConfig, rows: TrainRows, validation: TrainRows
) -> Iterator[tuple[TrainRows, TrainRows]]:
    """Yield the rows to learn from and those that say when to stop."""
    numbers = np.unique(rows.part)
    if config.parts == 1 or len(numbers) < 2:
        yield rows, validation if len(validation.label) else rows
        return
    for number in numbers:
        own = rows.part != number
        if len(np.unique(rows.label[own])) > 1:
            yield rows.take(own), rows.take(~own)


def _parameters(config: BlendConfig, task: Task, seed: int, num_threads: int) -> dict[str, Any]:
    kind = "multiclass" if task.has_codes else task.kind
    return {
        "objective": _OBJECTIVES[kind],
        **({"num_class": task.num_classes} if task.has_codes else {}),
        "learning_rate": config.shrinkage,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.least_rows,
        "max_bin": MOST_BINS,
        "lambda_l2": 1.0,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_pre_filter": False,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": num_threads,
        "verbosity": -1,
    }


def _grown(
    parameters: dict[str, Any], most_trees: int, own: TrainRows, judge: TrainRows, num_classes: int
) -> Forest:
    data = lightgbm.Dataset(own.x, own.label, weight=own.weight, params=parameters)
    judging = data.create_valid(judge.x, judge.label, weight=judge.weight)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(parameters, data, most_trees, [judging], callbacks=[stop])
    return forest_of(booster, num_classes)


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


def _constant(task: Task, label: float) -> Forest:
    """Return trees that always give the only label there is."""
    sure = 20.0  # a logit whose probability is 1 within 2e-9
    if task.has_codes:
        values = [sure if k == int(label) else -sure for k in range(task.num_classes)]
    elif task.kind == "binary":
        values = [sure if label > 0.5 else -sure]
    else:
        values = [label]
    own = torch.arange(len(values))
    return Forest(
        column=torch.full_like(own, -1),
        threshold=torch.zeros(len(values), dtype=torch.float64),
        missing_left=torch.zeros(len(values), dtype=torch.bool),
        left=own,
        right=own,
        value=torch.tensor(values, dtype=torch.float64),
        root=own,
        num_outputs=len(values),
    )
