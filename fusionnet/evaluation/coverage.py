"""Whether a run's intervals and sets of classes hold what they promise on evaluated rows.

Axes: N rows, T tasks, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from embedcache.schema import Config
from fusionnet.calibration.conformal import LeftOut, covered_share, floor_of
from fusionnet.calibration.saved import Calibration
from fusionnet.config.tasks import Task

LEVEL = 90  # percent, of what evaluations count
BAND_POINTS = 24  # of what a plot shows of intervals
LEAST_ROWS = 20  # with a label, of a group that is called the worst


class Worst(Config):
    """The group of rows whose labels are least often inside."""

    column: str
    value: str
    covered: float


class Coverage(Config):
    """What became of the intervals, or sets of classes, of one target."""

    promised: float
    guaranteed: float  # of rows of new units, exchangeable with the validation units
    unit: str  # the column of these units, or "row"
    rows: int  # with a label
    covered: float | None  # None of no rows
    # of units that were measured, each by the others: what is inside on average, and of the worst
    left_out: LeftOut | None = None
    mean_width: float | None = None  # of intervals, in the unit; None where one has no end
    mean_size: float | None = None  # of sets, in classes
    # of the intervals around noise-free outcomes that hold as many, in the unit
    oracle_width: float | None = None
    worst: tuple[Worst, ...] = ()  # by column of groups


class Grouping(NamedTuple):
    """A column by whose values coverage is counted apart."""

    column: str
    code: Int[np.ndarray, " N"]
    names: Sequence[str]


class Held(NamedTuple):
    """What was promised of the rows, by target column."""

    numbers: Mapping[str, Float[np.ndarray, "N 2"]]  # lower and upper bound
    classes: Mapping[str, Bool[np.ndarray, "N _"]]

    def inside(self, column: str, target: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Return which labels are inside; False where there is none."""
        if column in self.numbers:
            lower, upper = self.numbers[column].T
            return (target >= lower) & (target <= upper)
        label = np.nan_to_num(target).astype(np.int64)
        return self.classes[column][np.arange(len(label)), label] & ~np.isnan(target)


def band_of(
    bounds: Float[np.ndarray, "N 2"], prediction: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "B 3"]:
    """Return predictions, and the bounds that are in the middle of those of rows with about these.

    Rows are cut into shares of equal size by their prediction; intervals without an end are left
    out. At most BAND_POINTS of them.
    """
    finite = np.isfinite(bounds).all(1)
    order = np.argsort(prediction[finite], kind="stable")
    known = np.column_stack([prediction, bounds])[finite][order]
    parts = np.array_split(known, max(1, min(BAND_POINTS, len(known))))
    return np.array([np.median(part, axis=0) for part in parts if len(part)]).reshape(-1, 3)


def coverage_of(
    tasks: Sequence[Task],
    calibration: Calibration,
    held: Held,
    targets: Float[np.ndarray, "N T"],
    groupings: Sequence[Grouping],
    oracle: Float[np.ndarray, "N T"] | None,
) -> dict[str, Coverage]:
    """Return by target column what its intervals or sets hold."""
    found = {}
    for t, task in enumerate(tasks):
        if task.column in held.numbers or task.column in held.classes:
            best = None if oracle is None else oracle[:, t]
            found[task.column] = _of_task(task, calibration, held, targets[:, t], groupings, best)
    return found


def _of_task(
    task: Task,
    calibration: Calibration,
    held: Held,
    target: Float[np.ndarray, " N"],
    groupings: Sequence[Grouping],
    oracle: Float[np.ndarray, " N"] | None,
) -> Coverage:
    own, seen = calibration.scores[task.name], ~np.isnan(target)
    inside = held.inside(task.column, target)[seen]
    found = Coverage(
        promised=LEVEL / 100,
        guaranteed=floor_of(LEVEL, own.least_units, calibration.guaranteed) / 100,
        unit=calibration.unit_name,
        rows=int(seen.sum()),
        covered=float(inside.mean()) if seen.any() else None,
        left_out=own.left_out,
        worst=_worst_of(groupings, inside, seen),
    )
    if not seen.any():
        return found
    if task.column in held.classes:
        sizes = held.classes[task.column][seen].sum(1)
        return found.model_copy(update={"mean_size": float(sizes.mean())})
    width, ideal = np.diff(held.numbers[task.column][seen], axis=1), None
    off = np.array([]) if oracle is None else np.abs(target - oracle)[seen]
    if off.size and not np.isnan(off).all():
        ideal = float(2 * np.nanquantile(off, LEVEL / 100))
    mean = float(width.mean()) if np.isfinite(width).all() else None
    return found.model_copy(update={"mean_width": mean, "oracle_width": ideal})


def _worst_of(
    groupings: Sequence[Grouping], inside: Bool[np.ndarray, " n"], seen: Bool[np.ndarray, " N"]
) -> tuple[Worst, ...]:
    """Return the group of the least share by each column that has several with LEAST_ROWS."""
    found = []
    for column, code, names in groupings:
        own = code[seen]
        values, counts = np.unique(own, return_counts=True)
        many = set(values[counts >= LEAST_ROWS].tolist())
        shares = {each: share for each, share in covered_share(inside, own).items() if each in many}
        if len(shares) > 1:
            least = min(shares, key=shares.__getitem__)
            found.append(Worst(column=column, value=names[least], covered=shares[least]))
    return tuple(found)
