"""What a run reads, predicts and allows, as JSON, with a row that can be sent back as it is."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from embedcache.errors import UserError
from fusionnet.calibration.conformal import LEVELS
from fusionnet.serving.answers import MARKS, reward_columns_of
from fusionnet.serving.limits import Limits
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import uncertainty_names

DISTRIBUTION = "embedcache-fusionnet"
_MOST_STRINGS = 100  # of a column that are listed


def versions() -> dict[str, str]:
    """Return what the service runs on."""
    return {
        DISTRIBUTION: version(DISTRIBUTION),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def run_description(run: TrainedRun) -> dict[str, Any]:
    """Return which run it is."""
    return {
        "run": run.name,
        "run_id": run.run_id,
        "epoch": run.epoch,
        "moment": run.moment,
    }


def identity_of(run: TrainedRun) -> dict[str, str]:
    """Return the digests of what a run was trained from: table, encoders, tokenizers."""
    of_columns = ("data.", "targets", "split.")
    return {name: told for name, told in run.identity.items() if not name.startswith(of_columns)}


def schema_of(model: RewardModel, limits: Limits) -> dict[str, Any]:
    """Return the columns that a run reads, what it predicts, and an example."""
    run = model.run
    example = example_row(run)
    return {
        **run_description(run),
        "strings": list(_strings(run)),
        "numeric": list(_numbers(run)),
        "categories": list(_categories(run)),
        "tasks": [_task(task) for task in run.tasks],
        "predictions": [*model.columns(), *MARKS],
        "coverage": _levels(run),
        "uncertainty": uncertainty_names(run),
        **_reward(model),
        "limits": {
            "rows": limits.rows,
            "body_bytes": limits.body_bytes,
            "new_strings_per_column": limits.new_strings,
            "characters_per_cell": limits.text_characters,
        },
        "standin": run.standin,
        "note": run.note,
        "example": {"rows": [example]},
    }


def example_row(run: TrainedRun) -> dict[str, Any]:
    """Return a row with the first string and category of each column, and the train rows' means.

    Of a transformed feature it is the mean undone, or the median where its transform has ranks.
    """
    row: dict[str, Any] = {}
    for column in run.data.strings:
        row[column.column] = next(iter(run.strings[column.name]), column.if_null or "")
    row |= {column.column: _middle(run, column.column) for column in run.data.numeric}
    row |= {column: values[0] for column, values in run.layout.categories}
    return row


def _middle(run: TrainedRun, column: str) -> float:
    """Return a feature's mean over the train rows in its unit, or their median."""
    scaling = run.scaling
    place = scaling.columns.index(column)
    low, high = scaling.low[place], scaling.high[place]
    knots = scaling.knots[place]
    is_raw = scaling.transforms[place] == "identity"
    middle = scaling.mean[place] if is_raw else knots[len(knots) // 2]
    rounded = float(f"{middle:.6g}")
    return rounded if low <= rounded <= high else min(max(middle, low), high)


def _strings(run: TrainedRun) -> Iterator[dict[str, Any]]:
    for column in run.data.strings:
        known = list(run.strings[column.name])
        yield {
            "column": column.column,
            "kind": column.kind,
            "if_null": column.if_null,
            "num_known": len(known),
            "known": known[:_MOST_STRINGS],
        }


def _numbers(run: TrainedRun) -> Iterator[dict[str, Any]]:
    for column in run.data.numeric:
        place = run.scaling.columns.index(column.column)
        yield {
            "column": column.column,
            "unit": column.unit,
            "low": column.low,
            "high": column.high,
            "if_null": column.if_null,
            "train_low": run.scaling.low[place],
            "train_high": run.scaling.high[place],
        }


def _categories(run: TrainedRun) -> Iterator[dict[str, Any]]:
    known = dict(run.layout.categories)
    for column in run.data.categories:
        yield {
            "column": column.column,
            "values": list(known[column.column]),
            "other": column.other,
            "if_null": column.if_null,
        }


def _task(task: Any) -> dict[str, Any]:
    return {
        "name": task.name,
        "column": task.column,
        "kind": task.kind,
        "unit": task.unit,
        "classes": list(task.classes or ()) or None,
    }


def _levels(run: TrainedRun) -> dict[str, float] | None:
    """Return the least and the greatest coverage that intervals may have; None without any."""
    if run.calibration is None or not run.calibration.scores:
        return None
    return {"least": LEVELS[0] / 100, "greatest": LEVELS[-1] / 100}


def _reward(model: RewardModel) -> dict[str, Any]:
    """Return the reward as the run's config has it, and the columns of rewards.

    Both are None where the run has none that can be computed.
    """
    run = model.run
    try:
        columns = reward_columns_of(run, None)
    except UserError:
        return {"reward": None, "rewards": None}
    return {"reward": run.reward.model_dump(mode="json"), "rewards": [*columns, *MARKS]}
