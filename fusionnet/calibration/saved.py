"""`<name>_calibration.json`: what validation rows say of a run's best epoch."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from embedcache.errors import RunError
from embedcache.schema import Config
from fusionnet.calibration.conformal import LEVELS, LeftOut
from fusionnet.config.calibration import Unit

LEFT_OUT_LEVEL = 90  # percent
# of the scores at LEVELS; None is infinite, which JSON has no number for
Quantiles = tuple[float | None, ...]


class TaskScores(Config):
    """One target's quantiles of scores, of all validation rows, and by value of a column."""

    num_rows: int
    num_units: int
    least_units: int  # of any value that has quantiles of its own; else num_units
    # at LEFT_OUT_LEVEL, by the other units' pooled scores; None of one unit, or of rows
    left_out: LeftOut | None = None
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


class TaskChances(Config):
    """What is known of one target's probabilities."""

    temperature: Annotated[float, Field(gt=0, lt=1e3)] = 1.0
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None  # of binary targets: the best F1


class Calibration(Config):
    """What is known of a run's intervals, sets and probabilities, by names of tasks."""

    run_id: str
    epoch: int
    unit: Unit
    unit_name: str  # the column of the unit, or "row"
    by: str | None
    guaranteed: bool
    folds: int  # trainings beside the run, whose left-out rows were looked at; 0: validation rows
    scores: dict[str, TaskScores]  # of targets with validation labels
    chances: dict[str, TaskChances]  # of targets with classes and labels
    # of each string that was looked at, by prediction column: the mean of label less prediction,
    # in units (of classes: of chances), None without labels; nothing where other units are
    mean_errors: tuple[tuple[float | None, ...], ...] = ()

    @field_validator("mean_errors")
    @classmethod
    def _are_a_table(
        cls, found: tuple[tuple[float | None, ...], ...]
    ) -> tuple[tuple[float | None, ...], ...]:
        if len({len(own) for own in found}) > 1:
            raise ValueError("expected as many errors of each string")
        return found

    @property
    def rows_in_words(self) -> str:
        """What rows were looked at."""
        if self.folds:
            return f"rows that {self.folds} trainings beside this one left out"
        return "validation rows"

    @property
    def provided(self) -> str:
        """What the coverage that is guaranteed supposes of errors."""
        if self.folds:
            return "if this training errs as those do"
        return "whatever the errors are like"


def as_saved(quantiles: tuple[float, ...]) -> Quantiles:
    """Return quantiles as they are written."""
    return tuple(None if math.isinf(value) else value for value in quantiles)


def calibration_path(folder: Path, name: str) -> Path:
    """Return where a run keeps its calibration."""
    return folder / f"{name}_calibration.json"


def read_calibration(
    path: Path, run_id: str, epoch: int, tasks: frozenset[str]
) -> Calibration | None:
    """Return what was measured of a run's epoch, None while that is of another epoch.

    Raises RunError where the file is damaged, another run's, or of other tasks.
    """
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        why = str(error).splitlines()[0]
        raise RunError(f"{path} is no calibration of a run ({why:.200}); put it back") from None
    if found.run_id != run_id:
        raise RunError(
            f"{path} was made for run {found.run_id}, this is run {run_id}: put the run's own file"
            " back"
        )
    strange = [name for name in (*found.scores, *found.chances) if name not in tasks]
    if strange:
        raise RunError(f"{path} is of the tasks {', '.join(strange)}, which the run does not have")
    return found if found.epoch == epoch else None
