"""After a training: how far its best epoch is off on rows that it did not read.

That is the width of intervals and sets, and the temperature of probabilities. These are validation
rows, on which the best epoch and the weights of a blend were chosen too, so intervals are a little
too narrow: by how much is seen on test rows, which the evaluation counts. Or they are the rows that
train and validate, each looked at by a training that left its part out (`calibration.folds`,
cross-conformal prediction: Vovk 2015): more units, which chose nothing. What such a training says
is blended with trees on the rows that it read, of the run's own sizes and shares.

Axes: n rows that are looked at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from embedcache.cache.reader import Cache
from fusionnet.blend.blend import Blended
from fusionnet.calibration.chances import all_classes, tempered
from fusionnet.calibration.conformal import floor_of, left_out_coverage, score_quantiles
from fusionnet.calibration.fitting import best_threshold, fitted_temperature
from fusionnet.calibration.saved import (
    LEFT_OUT_LEVEL,
    Calibration,
    TaskChances,
    TaskScores,
    as_saved,
    calibration_path,
)
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment
from fusionnet.rows.units import UnitKind, split_unit
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.looking import Looked, Strata, looked_at, unit_kind

LEAST_ROWS = 50  # of a value of the column `by`
FEW_UNITS = 10  # whose quantile at LEFT_OUT_LEVEL is their largest score, or nearly


def write_calibration(
    folder: Path,
    experiment: Experiment,
    cache: Cache,
    verbose: bool,
    views: Sequence[Cache] = (),
    blend: Blended | None = None,
) -> None:
    """Measure a run that has just been trained, write what was found, and say it in a line.

    On validation rows, or on those of all views, on each of which a training beside the run is done
    (`left_out`); `blend` says by what plans trees are grown for these too. A run without labelled
    validation rows has nothing to be measured.
    """
    run = load_run(folder, "best", with_calibration=False)
    found = measured(run, experiment, cache, views, blend)
    content = f"{found.model_dump_json(indent=1)}\n".encode()
    write_listed(folder, run.run_id, calibration_path(folder, run.name), content)
    if verbose and found.scores:
        print(f"calibrated {in_words(found)}", flush=True)


def in_words(found: Calibration) -> str:
    """Return what was measured of what, and what intervals promise at LEFT_OUT_LEVEL percent."""
    name, task = next(iter(found.scores.items()))
    unit = "rows" if found.unit == "row" else f"values of {found.unit_name}"
    floor = floor_of(LEFT_OUT_LEVEL, task.least_units, found.guaranteed)
    more = f" and {len(found.scores) - 1} more" if len(found.scores) > 1 else ""
    told = (
        f"{name}{more} on {task.num_rows:,} {found.rows_in_words}, {task.num_units:,} {unit}:"
        f" intervals for {LEFT_OUT_LEVEL} % of rows hold at least {floor:.0f} % {found.provided}"
    )
    if task.left_out is not None:
        own = task.left_out
        told += f"; each by the others' errors: {own.mean:.0%}, the worst {own.least:.0%}"
    if not found.folds and task.num_units < FEW_UNITS:
        told += " (few: calibration.folds=5 asks the train rows too)"
    temperatures = [
        f"{name} {each.temperature:.2f}"
        for name, each in found.chances.items()
        if each.temperature != 1
    ]
    return f"{told}; temperature {', '.join(temperatures)}" if temperatures else told


def measured(
    run: TrainedRun,
    experiment: Experiment,
    cache: Cache,
    views: Sequence[Cache] = (),
    blend: Blended | None = None,
) -> Calibration:
    """Return the scores' quantiles of a run's targets on rows that it did not read; temperatures.

    The run is loaded without a calibration.
    """
    config, kind = experiment.calibration, unit_kind(experiment)
    looked = looked_at(run, experiment, cache, views, blend)
    scores, chances, errors = {}, {}, {}
    for task in run.tasks:
        if task.name not in looked:
            continue
        own = looked[task.name]
        score, predicted = own.score, own.predicted.double()
        if score is None:
            label = own.label.astype(np.int64)
            chances[task.name] = _chances(own.predicted, label, config.probabilities != "none")
            predicted = tempered(own.predicted, chances[task.name].temperature).double()
            every = all_classes(predicted)
            score = 1 - every.numpy()[np.arange(len(label)), label]
            found = nn.functional.one_hot(torch.from_numpy(label), every.shape[1])
            errors[task.name] = (found - every)[:, -predicted.shape[1] :].numpy()
        else:
            errors[task.name] = own.label[:, None] - predicted.numpy()
        scores[task.name] = _of_task(score, own.strata, config.guaranteed, kind.unit != "row")
    return Calibration(
        run_id=run.run_id,
        epoch=run.epoch,
        unit=kind.unit,
        unit_name=kind.column,
        by=config.by,
        guaranteed=config.guaranteed,
        folds=len(views),
        scores=scores,
        chances=chances,
        mean_errors=_mean_errors(run, looked, errors) if _leaves_out(experiment, kind) else (),
    )


def _leaves_out(experiment: Experiment, kind: UnitKind) -> bool:
    """Return whether the split leaves the units, strings, out: others tell nothing of new ones."""
    return kind.unit == "string" and kind == split_unit(experiment.data, experiment.split)


def _mean_errors(
    run: TrainedRun,
    looked: Mapping[str, Looked],
    errors: Mapping[str, Float[np.ndarray, "_n _K"]],
) -> tuple[tuple[float | None, ...], ...]:
    """Return by unit and prediction column the mean error, None where a unit has no labels."""
    units = sorted({int(unit) for own in looked.values() for unit in own.strata.unit})
    columns = prediction_columns(run.tasks)
    table = np.full((len(units), columns[-1].stop if columns else 0), np.nan)
    for task, own in zip(run.tasks, columns, strict=True):
        if task.name in errors:
            place = np.searchsorted(units, looked[task.name].strata.unit)
            counts = np.bincount(place, minlength=len(units))
            for number, column in enumerate(errors[task.name].T):
                sums = np.bincount(place, weights=column, minlength=len(units))
                with np.errstate(invalid="ignore"):
                    table[:, own.start + number] = sums / counts
    return tuple(tuple(None if np.isnan(x) else float(x) for x in row) for row in table)


def _chances(
    predicted: Float[Tensor, "n K"], label: Int[np.ndarray, " n"], is_wanted: bool
) -> TaskChances:
    """Return the temperature and, of two classes, the threshold of the best F1 at it."""
    temperature = fitted_temperature(predicted.numpy(), label) if is_wanted else 1.0
    if predicted.shape[1] > 1:
        return TaskChances(temperature=temperature)
    chance = tempered(predicted, temperature)[:, 0].double().numpy()
    return TaskChances(temperature=temperature, threshold=best_threshold(chance, label == 1))


def _of_task(
    score: Float[np.ndarray, " n"], strata: Strata, guaranteed: bool, has_units: bool
) -> TaskScores:
    """Return one target's quantiles, of all rows and of values that have enough of them."""
    own: dict[str, tuple[float | None, ...]] = {}
    num_units = [len(np.unique(strata.unit))]
    if strata.value is not None:
        for code, count in zip(*np.unique(strata.value, return_counts=True), strict=True):
            chosen = strata.value == code
            if count >= LEAST_ROWS:
                found = score_quantiles(score[chosen], strata.unit[chosen], guaranteed)
                own[strata.values[code]] = as_saved(found)
                num_units.append(len(np.unique(strata.unit[chosen])))
    return TaskScores(
        num_rows=len(score),
        num_units=num_units[0],
        least_units=min(num_units),
        left_out=(
            left_out_coverage(score, strata.unit, LEFT_OUT_LEVEL, guaranteed) if has_units else None
        ),
        pooled=as_saved(score_quantiles(score, strata.unit, guaranteed)),
        by_value=own,
    )
