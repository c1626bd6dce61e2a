"""How much each of several predictions counts, from rows that none has learned from.

A regression is blended as it is learnt (after its transform), in the loss that it is trained by;
chances of classes are averaged, in log loss (a linear pool). Both errors are convex in the weight,
so the least on a grid is the least of two predictions. More than two are mixed greedily (Caruana et
al. 2004, Ensemble selection from libraries of models).

Axes: n rows, K classes (1 of a number).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from fusionnet.config.tasks import Task

GRID = np.linspace(0, 1, 101)
LEAST_GAIN = 1e-3  # of the error, by which one more prediction has to lower it
MOST_ADDED = 50  # an error that falls to 0 would go on for a thousand
_LEAST_CHANCE = 1e-7  # a chance of 0 that comes true would count infinitely


def network_share(
    task: Task,
    network: Float[np.ndarray, "n K"],
    trees: Float[np.ndarray, "n K"],
    label: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
) -> float:
    """Return the network's weight; the trees' is what is left to 1.

    1 where no row has a label or a weight: nothing speaks for the trees.
    """
    if not len(label) or not weight.sum() > 0:
        return 1.0
    return best_share(
        lambda share: error_of(task, share * network + (1 - share) * trees, label, weight)
    )


def best_share(error: Callable[[float], float]) -> float:
    """Return the share, of a grid, of the least error."""
    return float(min(GRID, key=error))


def best_shares(
    predictions: Sequence[Float[np.ndarray, "n K"]],
    error: Callable[[Float[np.ndarray, "n K"]], float],
) -> list[float]:
    """Return how much each prediction counts, 0 or more with sum 1, in a mix of the least error.

    To a mix, at first the best prediction alone, the one that helps most is added, with the share
    that is best for it, until none helps by LEAST_GAIN, or MOST_ADDED times.
    """
    errors = [error(each) for each in predictions]
    first = int(np.argmin(errors))
    mix, least, shares = predictions[first], errors[first], np.eye(len(predictions))[first]
    for _ in range(MOST_ADDED):
        options = [_added(mix, each, error) for each in predictions]
        number = int(np.argmin([found for found, _ in options]))
        found, share = options[number]
        if not found < least * (1 - LEAST_GAIN):
            break
        mix = (1 - share) * mix + share * predictions[number]
        shares = (1 - share) * shares + share * np.eye(len(predictions))[number]
        least = found
    return [float(each) for each in shares]


def _added(
    mix: Float[np.ndarray, "n K"],
    other: Float[np.ndarray, "n K"],
    error: Callable[[Float[np.ndarray, "n K"]], float],
) -> tuple[float, float]:
    """Return the least error of a mix with some of another prediction, and how much of it."""

    def error_with(share: float) -> float:
        return error((1 - share) * mix + share * other)

    share = best_share(error_with)
    return error_with(share), share


def error_of(
    task: Task,
    prediction: Float[np.ndarray, "n K"],
    label: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
) -> float:
    """Return the weighted mean error that a blend is chosen by."""
    return float(np.average(_errors(task, prediction, label), weights=weight))


def _errors(
    task: Task, prediction: Float[np.ndarray, "n K"], label: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    if task.kind == "regression":
        off = prediction[:, 0] - label
        return np.square(off) if task.loss_name == "mse" else np.abs(off)
    if task.kind == "binary":
        chance = np.where(label > 0.5, prediction[:, 0], 1 - prediction[:, 0])
    else:
        chance = np.take_along_axis(prediction, label.astype(np.int64)[:, None], axis=1)[:, 0]
    return -np.log(np.maximum(chance, _LEAST_CHANCE))
