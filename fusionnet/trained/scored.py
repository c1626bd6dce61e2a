"""Predictions of a checked frame as tables, with what was asked for beside them.

Axes: U rows of a batch that can be used.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from embedcache.table.table import Table
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.trained.batches import Batch, predicted_batches
from fusionnet.trained.formula import Formula, formula_of
from fusionnet.trained.named import prediction_frame, prediction_names
from fusionnet.trained.novelty import NewStrings, new_strings_of
from fusionnet.trained.rewards import check_pessimism, reward_columns, reward_names, rewards_of
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import (
    Columns,
    bound_names,
    bounds_of,
    calibration_of,
    check_uncertain,
    level_of,
    uncertainty_columns,
    uncertainty_names,
)


@dataclass(frozen=True)
class Asked:
    """What is to stand beside predictions."""

    level: int | None  # of intervals and sets, in percent
    uncertainty: bool
    formula: Formula | None  # of the reward
    pessimism: float


def asked_of(
    run: TrainedRun,
    reward: bool,
    coverage: float | None,
    uncertainty: bool,
    pessimism: float | None,
) -> Asked:
    """Return what is asked for; raises what says that a run does not have it."""
    formula = formula_of(run) if reward else None
    factor = check_pessimism(run, pessimism) if reward else 0.0
    if uncertainty:
        check_uncertain(run)
    level = None
    if coverage is not None:
        level, _ = level_of(coverage), calibration_of(run)
    return Asked(level, uncertainty, formula, factor)


def scored_names(run: TrainedRun, asked: Asked) -> list[str]:
    """Return the columns of `scored_batches` before `known`, in their order."""
    names = prediction_names(run.tasks)
    if asked.level is not None:
        measured = calibration_of(run).scores
        own = {task.column for task in run.tasks if task.name in measured}
        names += [name for kind in bound_names(run.tasks, own) for name in kind]
    if asked.uncertainty:
        names += uncertainty_names(run)
    if asked.formula is not None:
        names += reward_names(asked.formula, asked.pessimism)
    return names


def scored_batches(
    run: TrainedRun,
    evaluate: RowEvaluator,
    table: Table,
    asked: Asked,
    keep: pl.LazyFrame | None,
) -> Iterator[pl.DataFrame]:
    """Yield predictions of all rows, null where one cannot be used, beside the rows of `keep`."""
    new = None
    if asked.formula is not None and asked.pessimism:
        texts = {name: strings.text for name, strings in table.strings.items()}
        new = new_strings_of(run, asked.formula, texts)
    for found in predicted_batches(run, evaluate, table, "probability", keep, with_marks=True):
        block = found.block
        batch = _named(run, found)
        for names, values, are_flags in _beside(run, found, table, asked, new):
            frame = pl.DataFrame(block.spread(values).cpu().numpy(), schema=names)
            batch = batch.hstack(frame.fill_nan(None).cast(pl.Boolean) if are_flags else frame)
        if not block.usable.all():
            batch = batch.fill_nan(None)
        assert block.marks is not None, "they were asked for"
        batch = batch.hstack(block.marks)
        yield batch if keep is None else block.kept.hstack(batch)


def _beside(
    run: TrainedRun, batch: Batch, table: Table, asked: Asked, new: NewStrings | None
) -> Iterator[Columns]:
    """Yield what stands beside the predictions of the rows that can be used."""
    found = batch.found
    if asked.level is not None:
        texts = {name: strings.text for name, strings in table.strings.items()}
        inputs = batch.block.inputs
        bounds = bounds_of(run, asked.level, found.outputs, batch.predictions, inputs, texts)
        yield from bounds.columns(run.tasks)
    if asked.uncertainty:
        yield uncertainty_columns(run, found.outputs, batch.predictions)
    if asked.formula is not None:
        read = found.in_units(run, run.reward.binary)
        variance = None if new is None else new.variance(batch.block.inputs)
        rewards = rewards_of(run, asked.formula, found, read, asked.pessimism, of_strings=variance)
        yield reward_columns(rewards, asked.formula, asked.pessimism)


def _named(run: TrainedRun, found: Batch) -> pl.DataFrame:
    """Return the predictions of all rows of a batch, with their names."""
    spread = found.block.spread
    predictions = scores = spread(found.predictions)
    if any(task.has_codes for task in run.tasks):
        scores = spread(found.found.in_units(run, "score"))
    return prediction_frame(run.tasks, predictions.cpu().numpy(), scores.cpu().numpy())
