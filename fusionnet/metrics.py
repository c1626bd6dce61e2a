"""Metrics of the specification's 7.1 and 7.2 in the targets' own units.

A target with a transform also has those of its transformed labels, named log10_mae and so on: where
labels span decades, the largest alone decide what the others are.

What is undefined is None, never a number. The formulas are scikit-learn's, and the tests hold the
numbers against its own. It is not called itself: every validation of a training computes these, and
over Stage 1's 89,496 validation rows it took 84 ms of CPU where these take 10, and its import 0.6 s
of every start.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from embedcache.scaling import DOMAIN_LOW, transformed
from fusionnet.config.tasks import BINARY_METRICS, REGRESSION_METRICS, Task
from fusionnet.config.tasks import METRICS as METRICS

Metrics = dict[str, float | None]
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
ERRORS = ("mae", "rmse")  # less is better


def title(metric: str) -> str:
    """Return what a metric is called beside a number: MAE, or MAE of log10."""
    transform, _, name = metric.rpartition("_")
    return f"{TITLES[name]} of {transform}" if transform else TITLES[name]


def unit_of(task: Task, metric: str) -> str:
    """Return the unit of one of a task's metrics, "" where it has none."""
    return task.unit if metric in ERRORS else ""


def is_error(metric: str) -> bool:
    """Return whether less of a metric is better."""
    return metric.rpartition("_")[2] in ERRORS


def regression_metrics(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Metrics:
    """Return mae and rmse (in the target's unit) and r2 over observed (not NaN) targets.

    Raises ValueError for a prediction that is not finite.
    """
    target, prediction = _observed(target, prediction)
    if len(target) == 0:
        return dict.fromkeys(REGRESSION_METRICS)
    error = prediction - target
    # pairwise sums; a product by BLAS waits for threads: 17 ms where others use the two cores
    squares = np.square(error).mean()
    spread = np.square(target - target.mean()).mean()
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": math.sqrt(squares),
        "r2": float(1 - squares / spread) if np.ptp(target) > 0 else None,
    }


def binary_metrics(target: Float[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> Metrics:
    """Return accuracy, AUROC, F1, recall and precision at 0.5 over observed targets (0 or 1).

    Raises ValueError for a score that is not finite.
    """
    target, score = _observed(target, score)
    label, chosen = target > 0.5, score > 0.5
    if len(label) == 0:
        return dict.fromkeys(BINARY_METRICS)
    positive, selected, hits = int(label.sum()), int(chosen.sum()), int((label & chosen).sum())
    return {
        "accuracy": float((label == chosen).mean()),
        "auroc": _auroc(label, score) if 0 < positive < len(label) else None,
        "f1": 2 * hits / (positive + selected) if positive + selected else None,
        "recall": hits / positive if positive else None,
        "precision": hits / selected if selected else None,
    }


def _observed(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the n rows whose target is not NaN."""
    observed = ~np.isnan(target)
    prediction = prediction[observed].astype(np.float64)
    if not np.isfinite(prediction).all():
        raise ValueError("a prediction is not finite, so its metrics are not defined")
    return target[observed].astype(np.float64), prediction


def _auroc(label: Bool[np.ndarray, " N"], score: Float64[np.ndarray, " N"]) -> float:
    """Return the share of pairs of a positive and a negative in which the positive has more.

    A tie is half a pair. Both classes must occur.
    """
    positive, negative = np.sort(score[label]), np.sort(score[~label])
    below = np.searchsorted(negative, positive, side="left").sum()
    not_above = np.searchsorted(negative, positive, side="right").sum()
    return float(below + not_above) / (2 * len(positive) * len(negative))


def task_metrics(
    tasks: Sequence[Task], targets: Float[np.ndarray, "N T"], predictions: Float[np.ndarray, "N T"]
) -> dict[str, Metrics]:
    """Return each task's metrics by its column.

    Labels and predictions are in raw units, and scores for binary tasks.
    """
    of_kind = {"regression": regression_metrics, "binary": binary_metrics}
    found: dict[str, Metrics] = {}
    for number, task in enumerate(tasks):
        target, prediction = targets[:, number], predictions[:, number]
        found[task.column] = of_kind[task.kind](target, prediction)
        if task.transform != "identity":
            found[task.column] |= _transformed_metrics(task, target, prediction)
    return found


def _transformed_metrics(
    task: Task, target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Metrics:
    """Return the metrics of transformed labels; undefined where an observed row has no transform.

    A model's predictions all have one, a baseline's or an oracle's need not.
    """
    target, prediction = _observed(target, prediction)
    both = torch.from_numpy(np.stack([target, prediction]))
    names = dict.fromkeys(REGRESSION_METRICS)
    if bool((both > DOMAIN_LOW[task.transform]).all()):
        names = regression_metrics(*transformed(both.T, [task.transform] * 2).T.numpy())
    return {f"{task.transform}_{name}": value for name, value in names.items()}


def reaches(metric: str, value: float | None, goal: float) -> bool | None:
    """Return whether a metric is better than its goal: errors below, scores above.

    None where the metric is undefined.
    """
    if value is None:
        return None
    return value < goal if is_error(metric) else value > goal


def main_metrics(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    """Return what is shown where there is room for little: the tasks of the largest weight."""
    heaviest = max(task.weight for task in tasks)
    primary = [task for task in tasks if task.weight == heaviest]
    return [(task, metric) for task in primary for metric in main_metrics_of(task)]


def main_metrics_of(task: Task) -> tuple[str, ...]:
    """Return a task's two main metrics, of transformed labels where it has a transform."""
    return tuple(_as_learnt(task, metric) for metric in MAIN_METRICS[task.kind])


def spread_metric(task: Task) -> str:
    """Return the metric that is compared between the values of a column."""
    return _as_learnt(task, "mae") if task.kind == "regression" else "accuracy"


def _as_learnt(task: Task, metric: str) -> str:
    return metric if task.transform == "identity" else f"{task.transform}_{metric}"
