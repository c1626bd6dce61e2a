"""How wrong each row's prediction is: what importance counts the growth of.

Of numbers the absolute error, in the unit of the target (of its logarithm where the target is
learnt so); of classes the log loss of the label's probability. Both are means over rows, so that
they compare from column to column and add over groups; both grow with whatever a prediction loses,
where accuracy and F1 see only what crosses a threshold, and AUROC sees no probabilities.

Axes: N rows, T tasks, P predictions, K classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fusionnet.config.tasks import LOGARITHMS, Task, prediction_columns
from fusionnet.explain.saved import ErrorOfTarget
from fusionnet.metrics import title, unit_of

_TINY = 1e-7


def row_errors(
    tasks: Sequence[Task],
    targets: Float[np.ndarray, "N T"],
    predictions: Float[np.ndarray, "N P"],
) -> Float[np.ndarray, "N T"]:
    """Return each row's error, NaN where it has no label.

    Targets and predictions are in units, probabilities of classes.
    """
    errors = np.full(targets.shape, np.nan)
    for t, (task, own) in enumerate(zip(tasks, prediction_columns(tasks), strict=True)):
        seen = ~np.isnan(targets[:, t])
        target, prediction = targets[seen, t], predictions[seen, own]
        if task.kind == "regression":
            errors[seen, t] = _absolute(task, target, prediction[:, 0])
        else:
            errors[seen, t] = -np.log(np.maximum(_chance_of_label(target, prediction), _TINY))
    return errors


def described_errors(
    tasks: Sequence[Task], errors: Float[np.ndarray, "N T"]
) -> dict[str, ErrorOfTarget]:
    """Return what the errors are and how large on average, by target column."""
    found = {}
    for task, column in zip(tasks, errors.T, strict=True):
        seen = column[~np.isnan(column)]
        value = float(seen.mean()) if len(seen) else None
        if task.kind == "regression":
            metric = f"{task.transform}_mae" if task.transform in LOGARITHMS else "mae"
            name, unit = title(metric), unit_of(task, metric)
        else:
            name, unit = "log loss" if task.has_probability else "log loss of the score", ""
        found[task.column] = ErrorOfTarget(name=name, unit=unit, value=value)
    return found


def _absolute(
    task: Task, target: Float[np.ndarray, " n"], prediction: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    if task.transform in LOGARITHMS:
        logarithm = np.log10 if task.transform == "log10" else np.log1p
        target, prediction = logarithm(target), logarithm(prediction)
    return np.abs(prediction - target)


def _chance_of_label(
    target: Float[np.ndarray, " n"], chances: Float[np.ndarray, "n K"]
) -> Float[np.ndarray, " n"]:
    """Return the probability of each row's label; of two classes K is 1, the positive one's."""
    label = target.astype(np.int64)
    every = np.concatenate([1 - chances, chances], axis=1) if chances.shape[1] == 1 else chances
    return every[np.arange(len(label)), label]
