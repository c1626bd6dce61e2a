"""What a run predicts of rows, and what the parts of a blend would alone."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusionnet.evaluation.coverage import LEVEL, Held
from fusionnet.evaluation.rows import RunRows
from fusionnet.model.forward import forward_rows, refuse_non_finite
from fusionnet.rows.tensors import row_table
from fusionnet.trained.blended import Found, found_of, tree_tables
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import bounds_of
from fusionnet.trained.vectors import vectors_of_all_strings

NETWORK_ALONE, TREES_ALONE = "its network alone", "its boosting alone"


class Predicted(NamedTuple):
    """What a run predicts of n rows, and what its parts would."""

    in_units: Float[np.ndarray, "n P"]
    scores: Float[np.ndarray, "n P"]
    alone: dict[str, Float[np.ndarray, "n P"]]  # scores by what is alone
    held: Held | None  # intervals and sets at LEVEL; None where the run has none


def predicted_rows(
    run: TrainedRun, given: RunRows, chosen: Int[np.ndarray, " n"], split: str, progress: bool
) -> Predicted:
    """Return the predictions of n chosen rows, and the scores that metrics read."""
    rows = row_table(given.block, chosen, run.scaling)
    rows = replace(rows, row=torch.from_numpy(given.row[chosen])).to(run.device)
    tables = [vectors_of_all_strings(run, name, texts) for name, texts in given.texts.items()]
    outputs = forward_rows(run.model, tables, rows, run.recipe.train.eval_batch_rows, progress)
    found = found_of(run, outputs, rows.inputs, tree_tables(run, given.texts, tables))
    in_units = found.in_units(run)
    where, columns = f"the {split} rows of {given.where}", run.scaling.columns
    refuse_non_finite(in_units, run.tasks, rows.numeric, columns, rows.row, where)
    held = None
    if run.calibration is not None and run.calibration.scores:
        bounds = bounds_of(run, LEVEL, outputs, in_units, rows.inputs, given.texts)
        held = Held(
            {column: _numpy(each) for column, each in bounds.numbers.items()},
            {column: each.cpu().numpy() for column, each in bounds.classes.items()},
        )
    return Predicted(
        _numpy(in_units),
        _numpy(found.in_units(run, "score")),
        {name: _numpy(alone) for name, alone in _alone(run, found).items()},
        held,
    )


def _alone(run: TrainedRun, found: Found) -> dict[str, Float[Tensor, "n P"]]:
    """Return the scores of a blend's network and of its trees, each alone; nothing without one."""
    if run.blend is None:
        return {}
    return {
        NETWORK_ALONE: found.in_units(replace(run, blend=None), "score"),
        TREES_ALONE: found.in_units(replace(run, blend=run.blend.trees_alone()), "score"),
    }


def _numpy(values: Float[Tensor, "n P"]) -> Float[np.ndarray, "n P"]:
    return values.cpu().numpy().astype(np.float64)
