"""Metrics of the specification's 7.1 and 7.2 in the targets' own units, and those of classes.

A target with a transform also has those of its transformed labels, named log10_mae and so on: where
labels span decades, the largest alone decide what the others are.

Of several classes, f1, auroc and auprc are means over the classes that the rows have, each against
all others (macro averages); mae and kappa are of an ordinal target's class numbers, the latter with
quadratic weights (Cohen 1968). AUPRC is the average precision.

What is undefined is None, never a number. The formulas are scikit-learn's, and the tests hold the
numbers against its own. It is not called itself: every validation of a training computes these, and
over Stage 1's 89,496 validation rows it took 84 ms of CPU where these take 10, and its import 0.6 s
of every start.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from embedcache.scaling import DOMAIN_LOW, transformed
from fusionnet.config.tasks import (
    BINARY_METRICS,
    LOGARITHMS,
    MULTICLASS_METRICS,
    ORDINAL_METRICS,
    REGRESSION_METRICS,
    Task,
    prediction_columns,
)
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
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "spearman": "Spearman correlation",
    "kappa": "quadratic kappa",
}
MAIN_METRICS = {  # where two have room
    "regression": ("mae", "r2"),
    "binary": ("auroc", "f1"),
    "multiclass": ("accuracy", "f1"),
    "ordinal": ("mae", "kappa"),
}
ERRORS = ("mae", "rmse")  # less is better


def title(metric: str) -> str:
    """Return what a metric is called beside a number: MAE, or MAE of log10."""
    if metric in TITLES:
        return TITLES[metric]
    transform, _, name = metric.partition("_")
    return f"{TITLES[name]} of {transform}"


def unit_of(task: Task, metric: str) -> str:
    """Return the unit of one of a task's metrics, "" where it has none."""
    if task.kind == "ordinal" and metric in ERRORS:
        return "classes"
    return task.unit if metric in ERRORS else ""


def is_error(metric: str) -> bool:
    """Return whether less of a metric is better."""
    return metric in ERRORS or metric.rpartition("_")[2] in ERRORS


def regression_metrics(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Metrics:
    """Return mae and rmse (in the target's unit), r2 and Spearman's correlation of observed labels.

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
        "spearman": _spearman(target, prediction),
    }


def binary_metrics(target: Float[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> Metrics:
    """Return what `BINARY_METRICS` names over observed targets (0 or 1), classes told at 0.5.

    Raises ValueError for a score that is not finite.
    """
    target, score = _observed(target, score)
    label, chosen = target > 0.5, score > 0.5
    if len(label) == 0:
        return dict.fromkeys(BINARY_METRICS)
    positive, selected, hits = int(label.sum()), int(chosen.sum()), int((label & chosen).sum())
    negative, num_rows = len(label) - positive, len(label)
    rejected = num_rows - positive - selected + hits  # negative ones that were not chosen
    both = positive > 0 and negative > 0
    auroc, auprc = _ranking(label, score)
    return {
        "accuracy": float((label == chosen).mean()),
        "auroc": auroc,
        "f1": 2 * hits / (positive + selected) if positive + selected else None,
        "recall": hits / positive if positive else None,
        "precision": hits / selected if selected else None,
        "auprc": auprc,
        "balanced_accuracy": (hits / positive + rejected / negative) / 2 if both else None,
    }


def multiclass_metrics(
    target: Float[np.ndarray, " N"], chance: Float[np.ndarray, "N K"]
) -> Metrics:
    """Return what `MULTICLASS_METRICS` names over observed targets (class numbers).

    The predicted class is the one of the largest chance. Raises ValueError for a chance that is not
    finite.
    """
    observed, chance = _observed(target, chance)
    if len(observed) == 0:
        return dict.fromkeys(MULTICLASS_METRICS)
    label, chosen = observed.astype(np.int64), chance.argmax(1)
    num_classes = chance.shape[1]
    confusion = np.bincount(label * num_classes + chosen, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    hits, of_label, of_chosen = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = np.flatnonzero(of_label)
    ranked: Metrics = {"auroc": None, "auprc": None}
    if len(present) > 1:
        each = [_ranking(label == k, chance[:, k]) for k in present.tolist()]
        means = np.array(each, dtype=np.float64).mean(0)
        ranked = {"auroc": float(means[0]), "auprc": float(means[1])}
    either = np.flatnonzero(of_label + of_chosen)
    return {
        "accuracy": float(hits.sum() / len(label)),
        "balanced_accuracy": float((hits[present] / of_label[present]).mean()),
        "f1": float((2 * hits[either] / (of_label + of_chosen)[either]).mean()),
        **ranked,
    }


def ordinal_metrics(target: Float[np.ndarray, " N"], chance: Float[np.ndarray, "N K"]) -> Metrics:
    """Return what `ORDINAL_METRICS` names: those of classes, and those of class numbers."""
    observed, known = _observed(target, chance)
    if len(observed) == 0:
        return dict.fromkeys(ORDINAL_METRICS)
    chosen = known.argmax(1).astype(np.float64)
    disagreement = np.square(chosen - observed).mean()
    # by chance: the mean square of the difference of independent draws
    by_chance = chosen.var() + observed.var() + (chosen.mean() - observed.mean()) ** 2
    return multiclass_metrics(target, chance) | {
        "mae": float(np.abs(chosen - observed).mean()),
        "kappa": float(1 - disagreement / by_chance) if by_chance > 0 else None,
        "spearman": _spearman(observed, known @ np.arange(known.shape[1])),
    }


def _observed(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, "N ..."]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n ..."]]:
    """Return the n rows whose target is not NaN."""
    observed = ~np.isnan(target)
    prediction = prediction[observed].astype(np.float64)
    if not np.isfinite(prediction).all():
        raise ValueError("a prediction is not finite, so its metrics are not defined")
    return target[observed].astype(np.float64), prediction


def _ranking(
    label: Bool[np.ndarray, " N"], score: Float64[np.ndarray, " N"]
) -> tuple[float | None, float | None]:
    """Return AUROC and average precision; None where a class, or the positive one, is not there.

    AUROC is the share of pairs of a positive and a negative in which the positive has more, a tie
    being half a pair; average precision the mean over the positives of the precision among the rows
    with no less a score.
    """
    order = np.argsort(-score)
    is_last_of_ties = np.append(np.diff(score[order]) != 0, True)
    selected = np.flatnonzero(is_last_of_ties) + 1
    hits = np.cumsum(label[order])[is_last_of_ties]
    num_positive, num_negative = int(hits[-1]), len(label) - int(hits[-1])
    if not num_positive:
        return None, None
    gained = np.diff(hits, prepend=0)
    precision = float((gained * hits / selected).sum() / num_positive)
    if not num_negative:
        return None, precision
    misses = selected - hits
    below = num_negative - misses + np.diff(misses, prepend=0) / 2
    return float((gained * below).sum() / (num_positive * num_negative)), precision


def _spearman(x: Float64[np.ndarray, " N"], y: Float64[np.ndarray, " N"]) -> float | None:
    """Return the correlation of ranks, ties sharing their mean; None where one is constant."""
    a, b = (_centred_ranks(values) for values in (x, y))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 0 else None


def _centred_ranks(values: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    order = np.argsort(values)
    is_last_of_ties = np.append(np.diff(values[order]) != 0, True)
    ends = np.flatnonzero(is_last_of_ties) + 1
    counts = np.diff(ends, prepend=0)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(ends - (counts - 1) / 2, counts)
    return ranks - (len(values) + 1) / 2


def task_metrics(
    tasks: Sequence[Task], targets: Float[np.ndarray, "N T"], predictions: Float[np.ndarray, "N P"]
) -> dict[str, Metrics]:
    """Return each task's metrics by its column.

    Labels and predictions are in raw units, scores for classes (`model.forward.to_units`).
    """
    found: dict[str, Metrics] = {}
    for number, (task, columns) in enumerate(zip(tasks, prediction_columns(tasks), strict=True)):
        target, prediction = targets[:, number], predictions[:, columns]
        if task.kind == "multiclass":
            found[task.column] = multiclass_metrics(target, prediction)
        elif task.kind == "ordinal":
            found[task.column] = ordinal_metrics(target, prediction)
        elif task.kind == "binary":
            found[task.column] = binary_metrics(target, prediction[:, 0])
        else:
            found[task.column] = regression_metrics(target, prediction[:, 0])
        if task.transform in LOGARITHMS:
            found[task.column] |= _transformed_metrics(task, target, prediction[:, 0])
    return found


def macro_metrics(tasks: Sequence[Task], found: Mapping[str, Metrics]) -> Metrics:
    """Return the means of the binary tasks' metrics over those that have them (multi-label).

    Nothing where there are fewer than two such tasks.
    """
    binary = [found[task.column] for task in tasks if task.kind == "binary"]
    if len(binary) < 2:
        return {}
    defined = {name: [each[name] for each in binary] for name in BINARY_METRICS}
    known = {name: [x for x in values if x is not None] for name, values in defined.items()}
    return {name: math.fsum(each) / len(each) if each else None for name, each in known.items()}


def _transformed_metrics(
    task: Task, target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"]
) -> Metrics:
    """Return the metrics of transformed labels; undefined where an observed row has no transform.

    A model's predictions all have one, a baseline's or an oracle's need not.
    """
    pair = transformed_pair(task, *_observed(target, prediction))
    names = dict.fromkeys(REGRESSION_METRICS) if pair is None else regression_metrics(*pair)
    return {f"{task.transform}_{name}": value for name, value in names.items()}


def transformed_pair(
    task: Task, target: Float64[np.ndarray, " N"], prediction: Float64[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]] | None:
    """Return labels and predictions as they are learnt; None where any has no transform."""
    both = torch.from_numpy(np.stack([target, prediction]))
    if not bool((both > DOMAIN_LOW[task.transform]).all()):
        return None
    as_learnt, predicted = transformed(both.T, [task.transform] * 2).T.numpy()
    return as_learnt, predicted


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
    return "accuracy" if task.kind in ("binary", "multiclass") else _as_learnt(task, "mae")


def _as_learnt(task: Task, metric: str) -> str:
    return f"{task.transform}_{metric}" if task.transform in LOGARITHMS else metric
