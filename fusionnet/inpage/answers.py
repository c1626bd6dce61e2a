"""What a page needs beside the network: how outputs become predictions, reward and intervals.

Every number that depends on a run is here, so that the script only follows rules.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from embedcache.errors import UserError
from embedcache.scaling import Scaling, scored
from fusionnet.calibration.saved import Calibration
from fusionnet.config.tasks import Task, output_columns, prediction_columns
from fusionnet.model.loss import class_weight, class_weights
from fusionnet.trained.formula import Formula, Reading, formula_of
from fusionnet.trained.novelty import new_strings_of
from fusionnet.trained.rewards import check_pessimism
from fusionnet.trained.run import TrainedRun

SHOWN_LEVELS = (50, 80, 90, 95)  # percent; that all are kept would be many numbers of many strings


def tasks_of(run: TrainedRun, calibrated: bool) -> list[dict[str, Any]]:
    """Return what the tasks' outputs stand for, in the order of the outputs.

    Probabilities have the run's temperature where they are `calibrated`.
    """
    scaling, tasks = run.scaling, run.tasks
    return [
        {
            "name": task.name,
            "column": task.column,
            "unit": task.unit,
            "kind": task.kind,
            "outputs": [outputs.start, outputs.stop],
            "predictions": [predictions.start, predictions.stop],
            "mean": scaling.target_mean[place],
            "std": scaling.target_std[place],
            "transform": scaling.target_transforms[place],
            "quantile": _quantile(scaling, place),
            "noise": task.has_noise,
            "classes": list(task.classes or ()),
            "ordered": task.loss_name == "ordered_logit",
            "log_weights": [math.log(each) for each in class_weights(task, scaling)],
            **_binary(task, scaling),
            "temperature": run.temperature(task) if calibrated else 1.0,
        }
        for place, (task, outputs, predictions) in enumerate(
            zip(tasks, output_columns(tasks), prediction_columns(tasks), strict=True)
        )
    ]


def _quantile(scaling: Scaling, place: int) -> dict[str, list[float]] | None:
    """Return the knots of a target's quantile transform, None of a target with another one."""
    if place not in scaling.quantiles:
        return None
    values, scores = scored(scaling.quantiles[place], torch.zeros(0, 0, dtype=torch.float64))
    return {"values": values.tolist(), "scores": scores.tolist()}


def _binary(task: Task, scaling: Scaling) -> dict[str, Any]:
    """Return the formula of a probability, and what it is the probability of."""
    if task.kind != "binary":
        return {}
    weight = class_weight(task, scaling.positive_rate.get(task.name))
    return {
        "positive": task.classes[1] if task.classes else "positive",
        "has_probability": task.has_probability,
        "gamma": task.gamma if task.loss_name == "focal" else 0.0,
        "log_weight": math.log(weight),
    }


def reward_of(run: TrainedRun) -> dict[str, Any] | str | None:
    """Return the reward's formula; in words why there is none, None where none is configured."""
    if not run.reward.terms:
        return None
    try:
        formula, pessimism = formula_of(run), check_pessimism(run, None)
    except UserError as error:
        return str(error)
    return {
        "unit": run.reward.binary,
        "pessimism": pessimism,
        "unseen": run.reward.unseen,
        "of_new": _of_new(run, formula),
        "terms": [{**_read(run, read), "weight": term.weight} for term, read in formula.terms],
        "penalties": [
            {
                **_read(run, read),
                "above": each.above,
                "below": each.below,
                "penalty": each.penalty,
            }
            for each, read in formula.penalties
        ],
    }


def _of_new(run: TrainedRun, formula: Formula) -> dict[str, Any] | None:
    """Return which string column's new strings add to doubt, and how much; None of none."""
    texts: dict[str, list[str]] = {spec.name: [] for spec in run.layout.strings}
    found = new_strings_of(run, formula, texts)
    return None if found is None else {"string": found.column, "deviation": found.deviation}


def _read(run: TrainedRun, read: Reading) -> dict[str, Any]:
    """Return which task a part reads, and which of its chances; None: the mean class number."""
    columns = prediction_columns(run.tasks)
    owners = enumerate(columns)
    place = next(t for t, own in owners if own.start <= read.columns.start < own.stop)
    label = None if read.is_mean else read.columns.start - columns[place].start
    return {"task": place, "label": label}


def intervals_of(run: TrainedRun, texts: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
    """Return the scores that hold labels, by level; None of a run without intervals.

    Where they differ by a string or category, they are in the order of `texts` or of the codes.
    """
    calibration = run.calibration
    if calibration is None or not calibration.scores:
        return None
    values = _values(run, calibration, texts)
    return {
        "levels": list(SHOWN_LEVELS),
        "unit": calibration.unit_name,
        "guaranteed": calibration.guaranteed,
        "by": _column(run, calibration.by),
        "tasks": {
            name: [_at_levels(calibration, name, value) for value in values]
            for name in calibration.scores
        },
    }


def _values(
    run: TrainedRun, calibration: Calibration, texts: Mapping[str, Sequence[str]]
) -> Sequence[str | None]:
    if calibration.by is None:
        return [None]
    return texts.get(calibration.by) or dict(run.layout.categories)[calibration.by]


def _column(run: TrainedRun, by: str | None) -> dict[str, Any] | None:
    """Return the column whose values have intervals of their own."""
    if by is None:
        return None
    strings = [spec.name for spec in run.layout.strings]
    if by in strings:
        return {"kind": "strings", "place": strings.index(by)}
    names = [column for column, _ in run.layout.categories]
    return {"kind": "categories", "place": names.index(by)}


def _at_levels(calibration: Calibration, name: str, value: str | None) -> list[float | None]:
    """Return the scores at the levels that are shown; None is infinite."""
    found = [calibration.scores[name].score_at(level, value) for level in SHOWN_LEVELS]
    return [None if math.isinf(score) else score for score in found]
