"""How good a fitted model is, and how sure it is of each class."""

from typing import Any

import polars as pl

from embedcache.errors import ConfigError
from fusionnet.estimators.workfolder import WorkFolder
from fusionnet.evaluation.evaluate import evaluate_rows
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import WHOLE
from fusionnet.evaluation.tablerows import is_own_table
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun
from fusionnet.workflow.evaluating import rows_for

_SCORES = {"regression": "r2", "binary": "accuracy", "multiclass": "accuracy"}


def evaluation_of(run: TrainedRun, frame: Any, split: str) -> Evaluation:
    """Return the evaluation on a frame's rows, or on one of the run's own splits (frame None).

    Rows of a frame that the run was trained on are left out, of the very table that it was trained
    on all but those of the split. Raises TableError, RunError or CacheError.
    """
    if frame is None:
        return evaluate_rows(run, rows_for(run, None, ()), split)
    place = WorkFolder(None)  # lives as long as its rows are read
    table = place.table_of(frame)
    rows = rows_for(run, None, [table])
    is_own = is_own_table(run, [table])
    return evaluate_rows(run, rows, split if is_own else WHOLE, with_baselines=is_own)


def score_of(run: TrainedRun, evaluation: Evaluation) -> float:
    """Return R2 of regression, accuracy of classes, kappa of ordered ones; the mean over targets.

    Raises ConfigError where none is defined: no labels, or all of one value.
    """
    found = [
        value
        for task in run.tasks
        if (value := evaluation.metrics[task.column][_SCORES.get(task.kind, "kappa")]) is not None
    ]
    if not found:
        raise ConfigError("there is no score: the rows have no labels, or one value in all of them")
    return sum(found) / len(found)


def probabilities(model: RewardModel, frame: Any) -> pl.DataFrame | Any:
    """Return `probability_<column>_<class>` for each class of each target that has some.

    Of the frame's own kind. Raises ConfigError where no target has classes.
    """
    with_classes = [task for task in model.run.tasks if task.kind != "regression"]
    if not with_classes:
        raise ConfigError("no target has classes, so there are no probabilities; call predict")
    found = model.predict(frame)
    columns: dict[str, Any] = {}
    for task in with_classes:
        names = [f"probability_{task.column}_{label}" for label in task.classes or (0, 1)]
        if task.has_codes:
            columns |= {name: found[name] for name in names}
        else:
            positive = found[f"predicted_{task.column}"]
            columns |= {names[0]: 1 - positive, names[1]: positive}
    if isinstance(found, pl.DataFrame):
        return pl.DataFrame([values.alias(name) for name, values in columns.items()])
    return type(found)(columns, index=found.index)
