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

from embedcache.schema import Config

LEVELS = tuple(range(50, 100))  # percent of rows inside
MOST_LEFT_OUT = 200  # units that are each left out once


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


class LeftOut(Config):
    """The share of a unit's rows that other units' scores cover: over units, each left out once."""

    mean: float
    least: float


def left_out_coverage(
    score: Float[np.ndarray, " n"], unit: Int[np.ndarray, " n"], level: int, guaranteed: bool
) -> LeftOut | None:
    """Return how much of each unit is within the quantile that the others have at a level.

    Each unit is a new one to the others, so the mean says what is to be expected of new ones, and
    the least how little one may have. Of more than MOST_LEFT_OUT units so many are left out, spread
    evenly. None where there are no others.
    """
    _, place, count = np.unique(unit, return_inverse=True, return_counts=True)
    num_units = len(count)
    if num_units < 2:
        return None
    order = np.argsort(score, kind="stable")
    ordered, owner = score[order], place[order]
    below = np.cumsum(1.0 / count[owner])
    wanted = level / 100 * (num_units if guaranteed else num_units - 1)
    shares = []
    for own in np.linspace(0, num_units - 1, min(num_units, MOST_LEFT_OUT)).astype(np.int64):
        is_own = owner == own
        others = below - np.cumsum(is_own) / count[own]
        at = int(np.searchsorted(others, wanted - 1e-9))
        is_endless = wanted > num_units - 1 + 1e-12
        q = math.inf if is_endless else ordered[min(at, len(ordered) - 1)]
        shares.append(float((ordered[is_own] <= q).mean()))
    return LeftOut(mean=float(np.mean(shares)), least=min(shares))


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
