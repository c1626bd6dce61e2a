"""What a run's probabilities are worth: how far they are from what happens, and at which threshold.

Axes: N rows, T tasks, P predictions, K classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from embedcache.schema import Config
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.metrics import Metrics, binary_metrics
from fusionnet.trained.run import TrainedRun

NUM_BINS = 15
_TINY = 1e-7
_AT_THRESHOLD = ("accuracy", "f1", "recall", "precision", "balanced_accuracy")


class Chances(Config):
    """One target's probabilities beside its labels; None where no row has one."""

    temperature: float  # that its logits were divided by
    ece: float | None  # expected calibration error, of the positive or the likeliest class
    brier: float | None  # mean square of chance less label, summed over classes where several
    log_loss: float | None
    threshold: float | None  # of two classes: the probability of the best F1 on validation rows
    at_threshold: Metrics  # where it counts as positive above that


def chances_of(
    run: TrainedRun, targets: Float[np.ndarray, "N T"], predictions: Float[np.ndarray, "N P"]
) -> dict[str, Chances]:
    """Return by target column what the probabilities of classes are worth."""
    found = {}
    for t, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        if task.kind != "regression" and task.has_probability:
            found[task.column] = _of_task(run, task, targets[:, t], predictions[:, own])
    return found


def _of_task(
    run: TrainedRun,
    task: Task,
    target: Float[np.ndarray, " N"],
    chances: Float[np.ndarray, "N K"],
) -> Chances:
    seen = ~np.isnan(target)
    label, chances = target[seen].astype(np.int64), chances[seen].astype(np.float64)
    known = {} if run.calibration is None else run.calibration.chances
    threshold = known[task.name].threshold if task.name in known else None
    is_binary = chances.shape[1] == 1
    every = np.concatenate([1 - chances, chances], axis=1) if is_binary else chances
    own = every[np.arange(len(label)), label]
    squares = np.square(every - np.eye(every.shape[1])[label]).sum(1) / (2 if is_binary else 1)
    sure = chances[:, 0] if is_binary else every.max(1)
    right = label == 1 if is_binary else label == every.argmax(1)
    return Chances(
        temperature=run.temperature(task),
        ece=calibration_error(sure, right) if seen.any() else None,
        brier=float(squares.mean()) if seen.any() else None,
        log_loss=float(-np.log(np.maximum(own, _TINY)).mean()) if seen.any() else None,
        threshold=threshold,
        at_threshold={} if threshold is None else _decided(label, chances[:, 0] > threshold),
    )


def _decided(label: Sequence[int] | np.ndarray, positive: Bool[np.ndarray, " n"]) -> Metrics:
    """Return the metrics of rows that are called positive, or not."""
    every = binary_metrics(np.asarray(label, dtype=np.float64), positive.astype(np.float64))
    return {name: every[name] for name in _AT_THRESHOLD}


def calibration_error(chance: Float[np.ndarray, " n"], happened: Bool[np.ndarray, " n"]) -> float:
    """Return the mean gap between chance and rate over NUM_BINS bins of equal width, by rows.

    (Naeini et al. 2015; Guo et al. 2017, equation 3.)
    """
    place = np.minimum((chance * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = np.bincount(place, weights=chance - happened, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(happened))
