"""How far predictions were off on rows that nobody trained on, as quantiles of a score.

A score is |label - prediction| over a scale of the row. Of K units (groups, strings, or rows) each
weighs 1 / K, shared by its rows: the quantile at p is the least score q such that rows with a score
of at most q weigh p. If the K units and a new one are exchangeable, a row of the new one has a
score of at most q with a chance of at least p K / (K + 1) (Lee, Barber, Willett 2023, Distribution-
free inference with hierarchical data, theorem 1, with the mass of the new unit at infinity). With
p (K + 1) / K for p the promise itself is guaranteed; with many units, or one row each, both are
the same. At p alone, for units of a common distribution, p is reached as K grows (Dunn, Wasserman,
Ramdas 2022, pooling of distribution functions).

MAPIE and crepes have rows as their only unit, so these ten lines are our own.

Axes: n rows, L levels.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

LEVELS = tuple(range(50, 100))  # percent of rows inside


def unit_weights(unit: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return each row's weight: units weigh alike, and 1 together."""
    _, place, count = np.unique(unit, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[place])


def score_quantiles(
    score: Float[np.ndarray, " n"], unit: Int[np.ndarray, " n"], guaranteed: bool
) -> tuple[float, ...]:
    """Return the scores' quantiles at LEVELS, infinite where K units cannot say so much.

    There is at least one row.
    """
    order = np.argsort(score, kind="stable")
    below = np.cumsum(unit_weights(unit)[order])
    num_units = len(np.unique(unit))
    factor = (num_units + 1) / num_units if guaranteed else 1.0
    found = []
    for level in LEVELS:
        wanted = level / 100 * factor
        if wanted > 1 + 1e-12:
            found.append(math.inf)
            continue
        place = int(np.searchsorted(below, wanted - 1e-9))  # sums of weights are rounded
        found.append(float(score[order[min(place, len(order) - 1)]]))
    return tuple(found)


def floor_of(level: int, num_units: int, guaranteed: bool) -> float:
    """Return the coverage in percent that is guaranteed of exchangeable units."""
    return float(level) if guaranteed else level * num_units / (num_units + 1)


def covered_share(
    covered: Sequence[bool] | np.ndarray, unit: Int[np.ndarray, " n"]
) -> dict[int, float]:
    """Return the share of covered rows by unit."""
    inside = np.asarray(covered, dtype=np.float64)
    names, place, count = np.unique(unit, return_inverse=True, return_counts=True)
    sums = np.bincount(place, weights=inside, minlength=len(names))
    return dict(zip(names.tolist(), (sums / count).tolist(), strict=True))
