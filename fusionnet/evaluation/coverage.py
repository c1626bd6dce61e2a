"""Whether a run's intervals hold what they promise: the share of labels inside, and of whom.

Axes: N rows, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from embedcache.schema import Config
from fusionnet.config.tasks import Task
from fusionnet.intervals.conformal import covered_share, floor_of
from fusionnet.intervals.saved import Intervals

LEVEL = 90  # percent, of what evaluations count
LEAST_ROWS = 20  # with a label, of a group that is called the worst


class Worst(Config):
    """The group of rows whose labels are least often inside."""

    column: str
    value: str
    covered: float


class Coverage(Config):
    """What became of the intervals of one target; widths are in its unit."""

    promised: float
    guaranteed: float  # of rows of new units, exchangeable with the validation units
    unit: str  # the column of these units, or "row"
    rows: int  # with a label
    covered: float | None  # None of no rows
    mean_width: float | None  # None where an interval has no end
    oracle_width: float | None  # of the intervals around noise-free outcomes that hold as many
    worst: tuple[Worst, ...]  # by column of groups


class Grouping(NamedTuple):
    """A column by whose values coverage is counted apart."""

    column: str
    code: Int[np.ndarray, " N"]
    names: Sequence[str]


def inside(
    tasks: Sequence[Task],
    bounds: Mapping[str, Float[np.ndarray, "N 2"]],
    targets: Float[np.ndarray, "N T"],
) -> Float[np.ndarray, "N T"]:
    """Return 1 where a label is in its interval, 0 where not, NaN where one of them is missing."""
    found = np.full(targets.shape, np.nan)
    for t, task in enumerate(tasks):
        if task.column in bounds:
            lower, upper = bounds[task.column].T
            held = (targets[:, t] >= lower) & (targets[:, t] <= upper)
            found[:, t] = np.where(np.isnan(targets[:, t]), np.nan, held)
    return found


def coverage_of(
    tasks: Sequence[Task],
    intervals: Intervals,
    bounds: Mapping[str, Float[np.ndarray, "N 2"]],
    targets: Float[np.ndarray, "N T"],
    groupings: Sequence[Grouping],
    oracle: Float[np.ndarray, "N T"] | None,
) -> dict[str, Coverage]:
    """Return by target column what its intervals hold."""
    held, found = inside(tasks, bounds, targets), {}
    for t, task in enumerate(tasks):
        if task.column not in bounds:
            continue
        own = intervals.tasks[task.name]
        seen = ~np.isnan(held[:, t])
        width = np.diff(bounds[task.column][seen], axis=1)
        ideal = None
        if oracle is not None and seen.any():
            off = np.abs(targets[seen, t] - oracle[seen, t])
            ideal = float(2 * np.nanquantile(off, LEVEL / 100)) if not np.isnan(off).all() else None
        found[task.column] = Coverage(
            promised=LEVEL / 100,
            guaranteed=floor_of(LEVEL, own.num_units, intervals.guaranteed) / 100,
            unit=intervals.unit_name,
            rows=int(seen.sum()),
            covered=float(held[seen, t].mean()) if seen.any() else None,
            mean_width=float(width.mean()) if seen.any() and np.isfinite(width).all() else None,
            oracle_width=ideal,
            worst=tuple(
                worst
                for each in groupings
                if (worst := _worst(each, held[seen, t], each.code[seen])) is not None
            ),
        )
    return found


def _worst(
    grouping: Grouping, held: Float[np.ndarray, " n"], code: Int[np.ndarray, " n"]
) -> Worst | None:
    """Return the group of the least share, of those with LEAST_ROWS; None of fewer than two."""
    names, counts = np.unique(code, return_counts=True)
    many = set(names[counts >= LEAST_ROWS].tolist())
    shares = {c: share for c, share in covered_share(held, code).items() if c in many}
    if len(shares) < 2:
        return None
    least = min(shares, key=shares.__getitem__)
    return Worst(column=grouping.column, value=grouping.names[least], covered=shares[least])
