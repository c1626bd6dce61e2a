"""What a trained run says of rows: its network's outputs, and beside them those of its trees.

Axes: B rows, O outputs, P predictions, K those of one task, U distinct strings.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.cache.layout import StringSpec
from fusionnet.calibration.chances import tempered
from fusionnet.config.reward import BinaryUnit
from fusionnet.config.tasks import prediction_columns
from fusionnet.model.forward import to_units
from fusionnet.model.members import members_of
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import TrainedRun

TreeTables = list[Float[Tensor, "_U _"]]  # what trees read of distinct strings, by string column


class Found(NamedTuple):
    """Outputs of the network, and what the trees predict, by task."""

    outputs: Float[Tensor, "B O"]
    of_trees: Mapping[str, Float[Tensor, "B _"]]

    def in_units(
        self, run: TrainedRun, binary_unit: BinaryUnit = "probability"
    ) -> Float[Tensor, "B P"]:
        """Return the run's predictions in the targets' units; see `to_units`.

        Probabilities are calibrated where the run is.
        """
        if run.blend is None:
            found = to_units(self.outputs, run.tasks, run.scaling, binary_unit)
        else:
            found = run.blend.predictions(
                self.outputs, self.of_trees, run.tasks, run.scaling, binary_unit
            )
        return _calibrated(found, run) if binary_unit == "probability" else found

    def of_members(self, run: TrainedRun) -> "Found":
        """Return what each member alone says of the rows, one member's rows after the other's.

        The trees beside it are the same for all.
        """
        num_outputs = sum(task.num_outputs for task in run.tasks)
        members = members_of(self.outputs, num_outputs)
        of_trees = {name: each.repeat(len(members), 1) for name, each in self.of_trees.items()}
        return Found(torch.cat(members), of_trees)


def _calibrated(found: Float[Tensor, "B P"], run: TrainedRun) -> Float[Tensor, "B P"]:
    """Return predictions with probabilities at the run's temperatures."""
    if all(run.temperature(task) == 1 for task in run.tasks):
        return found
    parts = zip(run.tasks, prediction_columns(run.tasks), strict=True)
    return torch.cat([tempered(found[:, own], run.temperature(task)) for task, own in parts], dim=1)


def tree_tables(
    run: TrainedRun,
    texts: Mapping[str, Sequence[str]],
    vectors: Sequence[Float[Tensor, "_U _"]],
) -> TreeTables:
    """Return what trees read of prepared strings, by string column; nothing without trees.

    `vectors` are the strings' own, with their features behind them.
    """
    if run.blend is None:
        return []
    named = zip(run.blend.columns.strings, run.layout.strings, vectors, strict=True)
    return [
        part.table(texts[spec.name], features_behind(spec, own)).to(run.device)
        for part, spec, own in named
    ]


def features_behind(spec: StringSpec, vectors: Float[Tensor, "U _"]) -> Float[Tensor, "U K"] | None:
    """Return the features of strings, which lie behind their vectors; None of a column without."""
    return vectors[:, spec.width :] if spec.features else None


def found_of(
    run: TrainedRun, outputs: Float[Tensor, "B O"], inputs: RowInputs, tables: TreeTables
) -> Found:
    """Return what the run says of rows, whose network's outputs are given.

    `inputs` are standardised and on the run's device; `tables` are those of their strings.
    """
    if run.blend is None:
        return Found(outputs, {})
    return Found(outputs, run.blend.of_trees(run.blend.columns.matrix(inputs, tables), run.tasks))
