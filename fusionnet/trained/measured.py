"""What evaluation has left in a run's folder: metrics of its test rows, with their intervals."""

import json
from typing import Any, NamedTuple

from fusionnet.config.tasks import Task
from fusionnet.trained.run import TrainedRun

METRICS = "metrics.json"  # of test rows, which evaluation writes
OWN_ROWS = "the run's own test rows"  # as it says where it evaluated no other table


class MeasuredMetric(NamedTuple):
    """One metric of a target, and the ends of its interval, if it has one."""

    task: Task
    metric: str
    value: float | None
    low: float | None
    high: float | None


class Measured(NamedTuple):
    """All metrics, and over how many values of what their intervals are (0: there are none)."""

    lines: list[MeasuredMetric]
    unit: str
    num_units: int


NOTHING = Measured([], "", 0)


def measured_on_test_rows(run: TrainedRun) -> Measured:
    """Return the metrics of the run's test rows, if its folder has those of this epoch."""
    try:
        found = json.loads((run.folder / METRICS).read_bytes())
        evaluated = found["checkpoint"], found["epoch"], found["rows"]
        if evaluated != (run.moment, run.epoch, OWN_ROWS):
            return NOTHING
        told = found.get("confidence", {"metrics": {}, "unit": "", "num_units": 0})
        lines = [
            _line(task, metric, found["test"][task.column][metric], told["metrics"])
            for task in run.tasks
            for metric in task.metrics
        ]
        has_intervals = any(line.low is not None for line in lines)
        return Measured(lines, str(told["unit"]), int(told["num_units"]) if has_intervals else 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return NOTHING  # not evaluated, or the file was edited: a card does without


def _line(task: Task, metric: str, value: Any, intervals: Any) -> MeasuredMetric:
    """Return a metric as JSON holds it; raises where it does not."""
    ends = intervals.get(task.column, {}).get(metric)
    low, high = (None, None) if ends is None else map(float, ends)
    return MeasuredMetric(task, metric, None if value is None else float(value), low, high)
