"""`<name>_intervals.json`: how wide the intervals of a run's best epoch are."""

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from embedcache.errors import RunError
from embedcache.schema import Config
from fusionnet.config.intervals import Unit
from fusionnet.intervals.conformal import LEVELS

# of the scores at LEVELS; None is infinite, which JSON has no number for
Quantiles = tuple[float | None, ...]


class TaskIntervals(Config):
    """One target's quantiles of scores, of all validation rows, and by value of a column."""

    num_rows: int
    num_units: int
    pooled: Quantiles
    by_value: dict[str, Quantiles] = Field(default_factory=dict)

    @field_validator("pooled", "by_value")
    @classmethod
    def _fits(cls, found: "Quantiles | dict[str, Quantiles]") -> "Quantiles | dict[str, Quantiles]":
        for each in found.values() if isinstance(found, dict) else [found]:
            numbers = [math.inf if value is None else value for value in each]
            if len(each) != len(LEVELS) or numbers != sorted(numbers) or numbers[0] < 0:
                raise ValueError(f"expected {len(LEVELS)} ascending scores from 0 on")
        return found

    def score_at(self, level: int, value: str | None = None) -> float:
        """Return the quantile at a level, in percent, for a value of the column `by`."""
        own = self.pooled if value is None else self.by_value.get(value, self.pooled)
        found = own[LEVELS.index(level)]
        return math.inf if found is None else found


class Intervals(Config):
    """What is known of the intervals of a run."""

    run_id: str
    epoch: int
    unit: Unit
    unit_name: str  # the column of the unit, or "row"
    by: str | None
    guaranteed: bool
    tasks: dict[str, TaskIntervals]  # by name; those with validation labels


def as_saved(quantiles: tuple[float, ...]) -> Quantiles:
    """Return quantiles as they are written."""
    return tuple(None if math.isinf(value) else value for value in quantiles)


def intervals_path(folder: Path, name: str) -> Path:
    """Return where a run keeps its intervals."""
    return folder / f"{name}_intervals.json"


def parsed_intervals(path: Path) -> Intervals:
    """Return what a file says; raises RunError where it is damaged."""
    try:
        return Intervals.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        why = str(error).splitlines()[0]
        raise RunError(f"{path} has no intervals of a run ({why:.200}); put it back") from None


def read_intervals(path: Path, run_id: str, epoch: int, tasks: Mapping[str, str]) -> Intervals:
    """Return the intervals of a run's epoch; raises RunError where the file is anything else.

    `tasks` has the kind of each of the run's tasks.
    """
    if not path.is_file():
        raise RunError(
            f"there is no {path}, so nobody knows how wide intervals must be: a training writes it"
            " when it ends, for its best epoch. End it with: fusionnet train --config ... --resume"
        )
    found = parsed_intervals(path)
    if (found.run_id, found.epoch) != (run_id, epoch):
        raise RunError(
            f"{path} was made for epoch {found.epoch} of run {found.run_id}, this is epoch {epoch}"
            f" of run {run_id}: the training goes on, or the file is another run's. End the"
            " training (--resume), or put the run's own file back"
        )
    strange = [name for name in found.tasks if tasks.get(name) != "regression"]
    if strange:
        raise RunError(f"{path} has intervals of {', '.join(strange)}, no numbers of the run")
    return found
