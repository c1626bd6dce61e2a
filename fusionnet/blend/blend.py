"""Two predictions of each target made one: the network's, and that of trees on the same features.

Axes: B rows, P columns of predictions, K those of one task (1 of a number), C columns of trees.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from embedcache.scaling import Scaling
from fusionnet.blend.columns import TreeColumns
from fusionnet.blend.forest import Forest
from fusionnet.config.reward import BinaryUnit
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.model.forward import to_units
from fusionnet.model.loss import class_weight, class_weights


@dataclass(frozen=True)
class TaskBlend:
    """One target's trees, and how much the network counts beside them."""

    share: float  # of the network, 0 to 1; the trees have the rest
    forest: Forest


@dataclass(frozen=True)
class Blend:
    """What is added to a trained network: trees for the targets that have labels and chances."""

    columns: TreeColumns
    tasks: Mapping[str, TaskBlend]  # by the task's name; others are the network's alone

    def to(self, device: torch.device | str) -> "Blend":
        """Return the same blend on a device."""
        moved = {
            name: replace(each, forest=each.forest.to(device)) for name, each in self.tasks.items()
        }
        return replace(self, tasks=moved)

    def trees_alone(self) -> "Blend":
        """Return the blend in which the network counts nothing where there are trees."""
        return replace(
            self, tasks={name: replace(each, share=0.0) for name, each in self.tasks.items()}
        )

    def of_trees(
        self, x: Float32[Tensor, "B C"], tasks: Sequence[Task]
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Return what the trees predict, by task: numbers as they are learnt, or chances."""
        return {
            task.name: tree_predictions(task, self.tasks[task.name].forest, x)
            for task in tasks
            if task.name in self.tasks
        }

    def predictions(
        self,
        outputs: Float[Tensor, "B _"],
        of_trees: Mapping[str, Float[Tensor, "B _"]],
        tasks: Sequence[Task],
        scaling: Scaling,
        binary_unit: BinaryUnit = "probability",
    ) -> Float[Tensor, "B P"]:
        """Return predictions in the targets' units, as `to_units` does of the network alone."""
        own = to_units(outputs, tasks, scaling, binary_unit)
        chances = own if binary_unit == "probability" else to_units(outputs, tasks, scaling)
        parts = []
        for number, (task, columns) in enumerate(
            zip(tasks, prediction_columns(tasks), strict=True)
        ):
            found = self.tasks.get(task.name)
            if found is None or found.share == 1:
                parts.append(own[:, columns])
                continue
            transform = scaling.of_target(number)
            learnt = as_learnt(task, chances[:, columns], transform)
            trees = of_trees[task.name].to(learnt)
            blended = found.share * learnt + (1 - found.share) * trees
            parts.append(_in_unit(task, blended, transform, scaling, binary_unit))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class KindPlan:
    """The trees of one kind: how large they are, how many, and how much they count."""

    number: int
    leaves: int
    trees: int
    share: float


TreePlan = tuple[KindPlan, ...]  # nothing of a task that has one class, or one value, alone


class Blended(NamedTuple):
    """A blend, and by what plans its trees were grown, by task."""

    blend: Blend
    plans: Mapping[str, TreePlan]


def is_blended(task: Task) -> bool:
    """Return whether a task's predictions can be averaged: numbers, and chances, not scores."""
    return task.kind == "regression" or task.has_probability


def as_learnt(
    task: Task, prediction: Float[Tensor, "B K"], transform: Scaling
) -> Float[Tensor, "B K"]:
    """Return predictions in units as they are blended: numbers transformed, chances as they are."""
    return transform.as_learnt(prediction.clone()) if task.kind == "regression" else prediction


def tree_predictions(task: Task, forest: Forest, x: Float32[Tensor, "B C"]) -> Float[Tensor, "B K"]:
    """Return what trees predict: numbers as they are learnt, or chances."""
    return of_raw(task, forest(x))


def of_raw(task: Task, raw: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Return what sums of trees' leaves stand for: numbers as they are learnt, or chances."""
    if task.kind == "regression":
        return raw
    return raw.softmax(1) if task.has_codes else raw.sigmoid()


def _in_unit(
    task: Task,
    blended: Float[Tensor, "B K"],
    transform: Scaling,
    scaling: Scaling,
    binary_unit: BinaryUnit,
) -> Float[Tensor, "B K"]:
    """Return blended predictions in units; a score is a chance whose odds have the class weight."""
    if task.kind == "regression":
        return transform.in_units(blended)
    if binary_unit == "probability":
        return blended
    if task.has_codes:
        weighted = blended * blended.new_tensor(class_weights(task, scaling))
        return weighted / weighted.sum(1, keepdim=True)
    weight = class_weight(task, scaling.positive_rate.get(task.name))
    return weight * blended / (weight * blended + 1 - blended)


def shares_in_words(blend: Blend, tasks: Sequence[Task]) -> str:
    """Return how much the network counts in each target."""
    return ", ".join(_shares(blend, tasks))


def _shares(blend: Blend, tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        found = blend.tasks.get(task.name)
        share = 1.0 if found is None else found.share
        yield f"{task.column} {share:.0%} network, {1 - share:.0%} boosting"
