"""Which epoch of a run is the best, and whether a better one is still awaited: functions of its
records, so that a resumed run comes to the same answers.
"""

import math
from collections.abc import Sequence

from embedcache.errors import ConfigError
from fusionnet.config.tasks import Task
from fusionnet.config.train import VAL_ERROR, VAL_LOSS, TrainConfig, TrainSection, monitor_names
from fusionnet.metrics import is_error
from fusionnet.train.callbacks import Record


def check_monitor(train: TrainSection, tasks: Sequence[Task]) -> None:
    """Raise ConfigError where the monitored metric is none of the tasks that are trained."""
    names = monitor_names(tasks)
    if train.monitor not in names:
        raise ConfigError(
            f"train.monitor names '{train.monitor}', whose task has no labels in this table; it may"
            f" be {', '.join(names)}"
        )


def best_epoch(records: Sequence[Record], monitor: str = VAL_LOSS) -> int:
    """Return the first epoch of the best monitored value, counted from 1; 0 where there is none.

    Where no epoch has such a value, since no validation row has a label, it is the last one. It is
    the one that training linked as `best`.
    """
    if all(record.get(monitor) is None for record in records):
        return len(records)
    return _best(records, monitor, 0.0)[0]


def stopped_early(records: Sequence[Record], train: TrainConfig) -> str | None:
    """Return why training ends after these epochs, or None where it goes on or is at its end."""
    found, best = _best(records, train.monitor, train.early_stopping.min_delta)
    is_awaited = found == 0 or len(records) - found < train.patience
    if is_awaited or len(records) >= train.epochs:
        return None
    return (
        f"{train.monitor} has not become better than {best:.4g} in the {train.patience} epochs"
        f" after epoch {found} (train.early_stopping.patience)"
    )


def _best(records: Sequence[Record], monitor: str, min_delta: float) -> tuple[int, float]:
    """Return the last epoch that was better by more than `min_delta` than the one that was before.

    With its value; 0 where no epoch has a number.
    """
    sign = -1.0 if monitor in (VAL_LOSS, VAL_ERROR) or is_error(monitor) else 1.0
    found, best = 0, -math.inf
    for epoch, record in enumerate(records, start=1):
        value = record.get(monitor)
        if value is not None and sign * value > best + min_delta:
            found, best = epoch, sign * value
    return found, sign * best
