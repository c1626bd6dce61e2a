"""Two runs on the same rows: by how much their metrics differ, and would with other units.

Both are weighed by the same draws of units (`bootstrap`), so what is hard for both cancels: the
interval of a difference is often far shorter than the intervals of the two metrics would suggest.

Axes: N rows, P columns of predictions, R replicates.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from pydantic import Field

from embedcache.schema import Config
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.evaluation.bootstrap import (
    LEAST_UNITS,
    LEVEL,
    REPLICATES,
    Bounds,
    bounds,
    drawn,
    num_units_of,
    too_few,
)
from fusionnet.evaluation.replicates import Draws, replicate_metrics
from fusionnet.evaluation.rows import Units
from fusionnet.metrics import is_error, task_metrics
from fusionnet.trained.run import TrainedRun

Verdict = Literal["better", "worse", "undecided"]


class Difference(Config):
    """One metric of this run and of the other."""

    own: float | None
    other: float | None
    difference: float | None  # own less other
    low: float | None  # ends of the difference's interval; None where there is none
    high: float | None
    in_favour: float | None  # share of replicates in which this run is better, a tie being half one
    verdict: Verdict  # of this run


class Comparison(Config):
    """This run beside another, by target column and metric."""

    run: str
    against: str
    against_checkpoint: str
    against_epoch: int
    num_rows: int
    level: float
    unit: str
    num_units: int
    replicates: int
    reason: str = ""  # why there are no intervals
    remark: str = ""  # what must be known of the rows
    left_out: dict[str, str] = Field(default_factory=dict)  # targets that are not compared, and why
    differences: dict[str, dict[str, Difference]]


class Scored(NamedTuple):
    """A run, and its scores of the compared rows, as metrics read them."""

    run: TrainedRun
    scores: Float[np.ndarray, "N P"]

    def of(self, column: str) -> tuple[Task, Float[np.ndarray, "N _"]]:
        """Return the task of a target column, and its scores."""
        t = [task.column for task in self.run.tasks].index(column)
        return self.run.tasks[t], self.scores[:, prediction_columns(self.run.tasks)[t]]


def common_tasks(own: TrainedRun, other: TrainedRun) -> tuple[list[Task], dict[str, str]]:
    """Return this run's tasks that the other has too, and why others are left out, by column."""
    others = {task.column: task for task in other.tasks}
    left_out = {column: f"{own.folder} does not predict it" for column in others}
    common = []
    for task in own.tasks:
        left_out.pop(task.column, None)
        beside = others.get(task.column)
        if beside is None:
            left_out[task.column] = f"{other.folder} does not predict it"
        elif task.kind != beside.kind:
            left_out[task.column] = f"{task.kind} here, {beside.kind} in {other.folder}"
        elif task.classes != beside.classes:
            left_out[task.column] = f"{other.folder} has other classes"
        else:
            common.append(task)
    return common, left_out


def compared(
    own: Scored, other: Scored, targets: Mapping[str, Float[np.ndarray, " N"]], units: Units
) -> Comparison:
    """Return how two runs differ on N rows, by the column of each target that is compared."""
    draws = drawn(units.number)
    num_units = len(np.unique(units.number))
    differences = {
        column: _of_target(own.of(column), other.of(column), target.astype(np.float64), draws)
        for column, target in targets.items()
    }
    return Comparison(
        run=str(own.run.folder),
        against=str(other.run.folder),
        against_checkpoint=other.run.moment,
        against_epoch=other.run.epoch,
        num_rows=len(units.number),
        level=LEVEL / 100,
        unit=units.name,
        num_units=num_units,
        replicates=REPLICATES,
        reason=too_few(units.name, num_units) if num_units < LEAST_UNITS else "",
        differences=differences,
    )


def _of_target(
    own: tuple[Task, Float[np.ndarray, "N _"]],
    other: tuple[Task, Float[np.ndarray, "N _"]],
    target: Float[np.ndarray, " N"],
    draws: Draws,
) -> dict[str, Difference]:
    """Return the differences in the metrics that both runs have of a target."""
    column, labels, pairs = own[0].column, target[:, None], (own, other)
    exact = [task_metrics([task], labels, scores)[column] for task, scores in pairs]
    drawn_anew = [replicate_metrics(task, target, scores, draws) for task, scores in pairs]
    num_units = num_units_of(draws, labels)
    found = {}
    for metric, value in exact[0].items():
        beside = exact[1].get(metric)
        if value is None or beside is None:
            found[metric] = _undefined(value, beside)
            continue
        values = drawn_anew[0][metric] - drawn_anew[1][metric]
        interval = bounds(values, value - beside, num_units)
        found[metric] = _difference(metric, value, beside, values, interval)
    return found


def _difference(
    metric: str, own: float, other: float, values: Float64[np.ndarray, " R"], interval: Bounds
) -> Difference:
    """Return a difference, with the sample's own as the first of its replicates' values."""
    known = values[1:][np.isfinite(values[1:])] + (own - other - values[0])
    better = known < 0 if is_error(metric) else known > 0
    low, high = (None, None) if interval is None else interval
    return Difference(
        own=own,
        other=other,
        difference=own - other,
        low=low,
        high=high,
        in_favour=None if interval is None else float((better + (known == 0) / 2).mean()),
        verdict=_verdict(metric, interval),
    )


def _undefined(own: float | None, other: float | None) -> Difference:
    return Difference(
        own=own,
        other=other,
        difference=None,
        low=None,
        high=None,
        in_favour=None,
        verdict="undecided",
    )


def _verdict(metric: str, interval: Bounds) -> Verdict:
    """Return what an interval of a difference says of this run."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if (interval[1] < 0) == is_error(metric) else "worse"
