"""Metrics of the specification's 7.1 and 7.2, by scikit-learn, in the targets' own units.

What is undefined is None, never a number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn import metrics

from fusionnet.config import Task

Metrics = dict[str, float | None]
REGRESSION_METRICS = ("mae", "rmse", "r2")
BINARY_METRICS = ("accuracy", "auroc", "f1", "recall", "precision")
METRICS = {"regression": REGRESSION_METRICS, "binary": BINARY_METRICS}
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "f1": "F1",
    "recall": "recall",
    "precision": "precision",
}
MAIN_METRICS = {"regression": ("mae", "r2"), "binary": ("auroc", "f1")}  # where two have room
ERRORS = ("mae", "rmse")  # in the target's unit; less is better


def regression_metrics(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Metrics:
    """Return mae and rmse (in the target's unit) and r2 over observed (not NaN) targets."""
    observed = ~np.isnan(target)
    target = target[observed].astype(np.float64)
    prediction = prediction[observed].astype(np.float64)
    if len(target) == 0:
        return dict.fromkeys(REGRESSION_METRICS)
    return {
        "mae": float(metrics.mean_absolute_error(target, prediction)),
        "rmse": float(metrics.root_mean_squared_error(target, prediction)),
        "r2": float(metrics.r2_score(target, prediction)) if np.ptp(target) > 0 else None,
    }


def binary_metrics(
    target: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"]
) -> Metrics:
    """Return accuracy, AUROC, F1, recall and precision at 0.5 over observed targets (0 or 1)."""
    observed = ~np.isnan(target)
    label = target[observed] > 0.5
    probability = probability[observed].astype(np.float64)
    if len(label) == 0:
        return dict.fromkeys(BINARY_METRICS)
    chosen = probability > 0.5
    both_classes = 0 < label.sum() < len(label)
    return {
        "accuracy": float(metrics.accuracy_score(label, chosen)),
        "auroc": float(metrics.roc_auc_score(label, probability)) if both_classes else None,
        "f1": float(metrics.f1_score(label, chosen)) if (label | chosen).any() else None,
        "recall": float(metrics.recall_score(label, chosen)) if label.any() else None,
        "precision": float(metrics.precision_score(label, chosen)) if chosen.any() else None,
    }


def task_metrics(
    tasks: Sequence[Task], targets: Float[np.ndarray, "N T"], predictions: Float[np.ndarray, "N T"]
) -> dict[str, Metrics]:
    """Return each task's metrics by its column.

    Predictions are in raw units, and probabilities for binary tasks.
    """
    of_kind = {"regression": regression_metrics, "binary": binary_metrics}
    return {
        task.column: of_kind[task.kind](targets[:, number], predictions[:, number])
        for number, task in enumerate(tasks)
    }


def reaches(metric: str, value: float | None, goal: float) -> bool | None:
    """Return whether a metric is better than its goal: errors below, scores above.

    None where the metric is undefined.
    """
    if value is None:
        return None
    return value < goal if metric in ERRORS else value > goal


def main_metrics(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    """Return what is shown where there is room for little: the tasks of the largest weight."""
    heaviest = max(task.weight for task in tasks)
    primary = [task for task in tasks if task.weight == heaviest]
    return [(task, metric) for task in primary for metric in MAIN_METRICS[task.kind]]
