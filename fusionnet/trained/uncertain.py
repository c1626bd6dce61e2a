"""What stands beside predictions: how uncertain each is, and an interval that holds its label.

Axes: U rows, T tasks, P predictions, C columns.
"""

import math
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from embedcache.errors import ConfigError, RunError
from fusionnet.calibration.chances import classes_inside
from fusionnet.calibration.conformal import LEVELS
from fusionnet.calibration.saved import Calibration, calibration_path
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.model.uncertainty import noise_as_learnt, spread_as_learnt, spread_in_units
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import TrainedRun


class Columns(NamedTuple):
    """Numbers beside predictions, with their names, or 1 and 0 for yes and no."""

    names: list[str]
    values: Float[Tensor, "U C"]
    are_flags: bool = False


def level_of(coverage: float) -> int:
    """Return a coverage (0.9) as percent; raises ConfigError for one that intervals do not have."""
    level = round(100 * coverage) if math.isfinite(coverage) else -1
    if level not in LEVELS or abs(level - 100 * coverage) > 1e-6:
        raise ConfigError(
            f"coverage must be one of {LEVELS[0] / 100:.2f}, {LEVELS[1] / 100:.2f}, ...,"
            f" {LEVELS[-1] / 100:.2f}, the share of rows that an interval is to hold; got"
            f" {coverage:g}"
        )
    return level


def calibration_of(run: TrainedRun) -> Calibration:
    """Return what validation rows say of a run; raises RunError where that is nothing yet."""
    if run.moment != "best":
        raise RunError(f"intervals belong to the best epoch of {run.folder}, not to '{run.moment}'")
    path = calibration_path(run.folder, run.name)
    if run.calibration is None:
        raise RunError(
            f"{path} has nothing on epoch {run.epoch}, so nobody knows how wide intervals must be:"
            " a training measures that when it ends. End it with: fusionnet train --config ..."
            " --resume"
        )
    if not run.calibration.scores:
        raise RunError(f"{path} has no intervals: no validation row had a label")
    return run.calibration


def check_uncertain(run: TrainedRun) -> None:
    """Raise ConfigError where a run knows nothing of its uncertainty."""
    if not uncertainty_names(run):
        raise ConfigError(
            f"{run.folder} has learnt no uncertainty: train with an ensemble (model.members=8),"
            " with the noise of a regression target (its loss: beta_nll), or both"
        )


def uncertainty_columns(
    run: TrainedRun, outputs: Float[Tensor, "U _"], predictions: Float[Tensor, "U P"]
) -> Columns:
    """Return standard deviations in the targets' units: learnt noise, and spread of members.

    `aleatoric_<column>` where a task learns it, `epistemic_<column>` of an ensemble, of several
    classes `epistemic_<column>_<class>`. Of a transformed target the noise is half the way from one
    deviation below the prediction to one above.
    """
    columns = []
    if run.recipe.model.members > 1:
        columns.append(spread_in_units(outputs, run.tasks, run.scaling))
    noise = noise_as_learnt(outputs, run.tasks, run.scaling).double()
    for t, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        if task.has_noise:
            lower, upper = _around(run, t, predictions[:, own], noise[:, t : t + 1])
            columns.append((upper - lower) / 2)
    return Columns(uncertainty_names(run), torch.cat([each.float() for each in columns], dim=1))


def uncertainty_names(run: TrainedRun) -> list[str]:
    """Return the columns of `uncertainty_columns`; none of a run that has learnt none."""
    names = []
    if run.recipe.model.members > 1:
        for task in run.tasks:
            labels = [f"_{label}" for label in task.classes or ()] if task.has_codes else [""]
            names += [f"epistemic_{task.column}{label}" for label in labels]
    return [*names, *(f"aleatoric_{task.column}" for task in run.tasks if task.has_noise)]


class Bounds(NamedTuple):
    """What holds each row's label, by target column."""

    numbers: dict[str, Float[Tensor, "U 2"]]  # lower and upper, in the target's unit
    classes: dict[str, Bool[Tensor, "U _"]]  # which of the K classes

    def columns(self, tasks: Sequence[Task]) -> list[Columns]:
        """Return them as columns, see `bound_names`."""
        found = []
        names = bound_names(tasks, {*self.numbers, *self.classes})
        if self.numbers:
            values = torch.cat([each.float() for each in self.numbers.values()], dim=1)
            found.append(Columns(names.numbers, values))
        if self.classes:
            values = torch.cat([each.float() for each in self.classes.values()], dim=1)
            found.append(Columns(names.classes, values, are_flags=True))
        return found


class BoundNames(NamedTuple):
    """The columns of `Bounds`."""

    numbers: list[str]
    classes: list[str]


def bound_names(tasks: Sequence[Task], columns: Container[str]) -> BoundNames:
    """Return `lower_<column>` and `upper_<column>` of numbers, `set_<column>_<class>` of classes.

    Of the tasks with these columns, in their order.
    """
    names = BoundNames([], [])
    for task in tasks:
        if task.column in columns and task.kind == "regression":
            names.numbers.extend(f"{side}_{task.column}" for side in ("lower", "upper"))
        elif task.column in columns:
            names.classes.extend(
                f"set_{task.column}_{label}" for label in task.classes or ("0", "1")
            )
    return names


def bounds_of(
    run: TrainedRun,
    level: int,
    outputs: Float[Tensor, "U _"],
    predictions: Float[Tensor, "U P"],
    inputs: RowInputs,
    texts: Mapping[str, Sequence[str]],
) -> Bounds:
    """Return what holds each row's label at a level, in percent.

    Bounds are infinite, and sets whole, where the validation rows cannot promise the level. `texts`
    are the distinct strings that the inputs' ids index, by string column.
    """
    calibration = calibration_of(run)
    scales = score_scales(run, outputs)
    found = Bounds({}, {})
    for t, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        if task.name not in calibration.scores:
            continue
        score = _scores(run, calibration, task.name, level, inputs, texts).to(scales.device)
        if task.kind == "regression":
            half = (score * scales[:, t]).unsqueeze(1)
            sides = _around(run, t, predictions[:, own], half)
            found.numbers[task.column] = torch.cat(sides, dim=1)
        else:
            found.classes[task.column] = classes_inside(predictions[:, own], score)
    return found


def score_scales(run: TrainedRun, outputs: Float[Tensor, "U _"]) -> Float[Tensor, "U T"]:
    """Return what a row's error is divided by, in float64, as targets are learnt.

    That is the learnt noise, with the members' spread in quadrature, or the train labels' spread
    for all rows alike.
    """
    noise = noise_as_learnt(outputs, run.tasks, run.scaling).double()
    spread = spread_as_learnt(outputs, run.tasks, run.scaling).double()
    alike = torch.as_tensor(run.scaling.target_std, dtype=noise.dtype, device=noise.device)
    return torch.where(noise.isnan(), alike, (noise.square() + spread.square()).sqrt())


def as_learnt(run: TrainedRun, t: int, values: Float[Tensor, "U 1"]) -> Float[Tensor, "U 1"]:
    """Return values of one regression target in units, in float64 with its transform applied."""
    return run.scaling.of_target(t).as_learnt(values.double().clone())


def _around(
    run: TrainedRun, t: int, prediction: Float[Tensor, "U 1"], half: Float[Tensor, "U 1"]
) -> tuple[Float[Tensor, "U 1"], Float[Tensor, "U 1"]]:
    """Return in units what lies so far below and above a prediction as it is learnt."""
    transform, centre = run.scaling.of_target(t), as_learnt(run, t, prediction)
    finite = torch.where(half.isfinite(), half, 0.0)
    lower, upper = (transform.in_units(centre + sign * finite) for sign in (-1, 1))
    endless = half.isinf()
    return lower.masked_fill(endless, -math.inf), upper.masked_fill(endless, math.inf)


def _scores(
    run: TrainedRun,
    calibration: Calibration,
    name: str,
    level: int,
    inputs: RowInputs,
    texts: Mapping[str, Sequence[str]],
) -> Float[Tensor, " U"]:
    """Return the score that holds each row's label at a level."""
    task = calibration.scores[name]
    if calibration.by is None:
        return torch.full((inputs.num_rows,), task.score_at(level), dtype=torch.float64)
    codes, values = codes_of(run, calibration.by, inputs, texts)
    of_values = [task.score_at(level, value) for value in values]
    return torch.tensor(of_values, dtype=torch.float64)[codes]


def codes_of(
    run: TrainedRun, by: str, inputs: RowInputs, texts: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, Sequence[str]]:
    """Return each row's place among the values of a string or category column, and the values."""
    strings = [spec.name for spec in run.layout.strings]
    if by in strings:
        return inputs.string_id[:, strings.index(by)].cpu().numpy(), texts[by]
    place = [column for column, _ in run.layout.categories].index(by)
    return inputs.category[:, place].cpu().numpy(), run.layout.categories[place][1]
