"""After a training: how far its best epoch is off on rows that it did not read.

That is the width of intervals and sets, and the temperature of probabilities. These are validation
rows, on which the best epoch and the weights of a blend were chosen too, so intervals are a little
too narrow: by how much is seen on test rows, which the evaluation counts. Or they are the rows that
train and validate, each looked at by a training that left its part out (`calibration.folds`,
cross-conformal prediction: Vovk 2015): more units, which chose nothing. What such a training says
is blended with trees on the rows that it read, of the run's own sizes and shares.

Axes: n rows that are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from fusionnet.blend.blend import Blended
from fusionnet.calibration.chances import all_classes, tempered
from fusionnet.calibration.conformal import floor_of, score_quantiles
from fusionnet.calibration.fitting import best_threshold, fitted_temperature
from fusionnet.calibration.saved import (
    Calibration,
    TaskChances,
    TaskScores,
    as_saved,
    calibration_path,
)
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment
from fusionnet.model.forward import forward_rows
from fusionnet.rows.tensors import row_table, rows_per_chunk
from fusionnet.rows.units import UnitKind, split_unit, unit_of_rows
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.blended import found_of, tree_tables
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.uncertain import as_learnt, codes_of, score_scales
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.left_out import run_of_part

MOST_ROWS = 50_000  # validation rows that are looked at; of more, as many are drawn
LEAST_ROWS = 50  # of a value of the column `by`
SHOWN = 90  # percent
FEW_UNITS = 10  # whose quantile at SHOWN is their largest score, or nearly


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
    """Return what was measured of what, and what intervals promise at SHOWN percent."""
    name, task = next(iter(found.scores.items()))
    unit = "rows" if found.unit == "row" else f"values of {found.unit_name}"
    floor = floor_of(SHOWN, task.least_units, found.guaranteed)
    more = f" and {len(found.scores) - 1} more" if len(found.scores) > 1 else ""
    told = (
        f"{name}{more} on {task.num_rows:,} {found.rows_in_words}, {task.num_units:,} {unit}:"
        f" intervals for {SHOWN} % of rows hold at least {floor:.0f} % {found.provided}"
    )
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
    if views:
        parts = [
            _looked_at(part, run, experiment, view, len(views))
            for view, part in zip(views, _parts(run, experiment, views, blend), strict=True)
        ]
        looked = _joined(parts, kind)
    else:
        looked = _looked_at(run, run, experiment, cache, 1)
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
        scores[task.name] = _of_task(score, own.strata, config.guaranteed)
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
        mean_errors=_mean_errors(run, looked, errors) if kind.unit == "string" else (),
    )


def _mean_errors(
    run: TrainedRun,
    looked: Mapping[str, "Looked"],
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


class Looked(NamedTuple):
    """What one target's labelled rows say of its predictions."""

    strata: "Strata"
    predicted: Float[Tensor, "n K"]
    label: Float[np.ndarray, " n"]  # in the target's unit; of classes their numbers
    score: Float[np.ndarray, " n"] | None  # of a number: how far off in units of the row's scale


def _looked_at(
    run: TrainedRun, main: TrainedRun, experiment: Experiment, cache: Cache, shares: int
) -> dict[str, Looked]:
    """Return what a cache's validation rows say of a run, by target with labels.

    Of very many rows one of `shares` shares of MOST_ROWS is looked at. Where rows have no scale of
    their own, it is that of the run `main`, whose intervals these are.
    """
    data, split = experiment.data, experiment.split
    texts = {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings}
    block = _validation_rows(cache, experiment.train.seed, MOST_ROWS // shares)
    rows = row_table(block, np.arange(len(block.split)), run.scaling)
    vectors = [vectors_of_all_strings(run, name, own) for name, own in texts.items()]
    outputs = forward_rows(run.model, vectors, rows, run.recipe.train.eval_batch_rows)
    found = found_of(run, outputs, rows.inputs, tree_tables(run, texts, vectors))
    predictions, scales = found.in_units(run), score_scales(run, outputs)
    kind, by = unit_kind(experiment), experiment.calibration.by
    strata = Strata(
        unit_of_rows(data, split, kind, block, np.arange(rows.num_rows), list(texts.values())),
        *(None, ()) if by is None else codes_of(run, by, rows.inputs, texts),
    )
    looked = {}
    for t, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        labelled = (rows.targets[:, t].isfinite() & (rows.weight > 0)).numpy()
        if not labelled.any() or not (task.kind == "regression" or task.has_probability):
            continue
        label, predicted = rows.targets[labelled, t].double(), predictions[labelled][:, own]
        score = None
        if task.kind == "regression":
            off = label - as_learnt(run, t, predicted).squeeze(1)
            alike = main.scaling.target_std[t]
            score = (off.abs() / (scales[labelled, t] if task.has_noise else alike)).numpy()
            label = run.scaling.of_target(t).in_units(label.unsqueeze(1)).squeeze(1)
        looked[task.name] = Looked(strata.take(labelled), predicted, label.numpy(), score)
    return looked


def _parts(
    run: TrainedRun, experiment: Experiment, views: Sequence[Cache], blend: Blended | None
) -> Iterator[TrainedRun]:
    """Yield what was trained on each view, with trees of its rows where the run has some.

    They are as large, as many, and count as much as the run's own.
    """
    for number, view in enumerate(views):
        part = run_of_part(run.folder, number)
        if blend is not None and blend.plans:
            # not at the top: scikit-learn and LightGBM take a second to import
            from fusionnet.workflow.blending import blended_alike

            part = replace(part, blend=blended_alike(part, experiment, view, blend))
        yield part


def _joined(parts: Sequence[dict[str, Looked]], kind: UnitKind) -> dict[str, Looked]:
    """Return what all parts say, each row being its own unit still where rows are units."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        units = [each.strata.unit for each in own]
        unit = np.arange(sum(map(len, units))) if kind.unit == "row" else np.concatenate(units)
        values = [each.strata.value for each in own if each.strata.value is not None]
        scores = [each.score for each in own if each.score is not None]
        joined[name] = Looked(
            Strata(unit, np.concatenate(values) if values else None, own[0].strata.values),
            torch.cat([each.predicted for each in own]),
            np.concatenate([each.label for each in own]),
            np.concatenate(scores) if scores else None,
        )
    return joined


def _chances(
    predicted: Float[Tensor, "n K"], label: Int[np.ndarray, " n"], is_wanted: bool
) -> TaskChances:
    """Return the temperature and, of two classes, the threshold of the best F1 at it."""
    temperature = fitted_temperature(predicted.numpy(), label) if is_wanted else 1.0
    if predicted.shape[1] > 1:
        return TaskChances(temperature=temperature)
    chance = tempered(predicted, temperature)[:, 0].double().numpy()
    return TaskChances(temperature=temperature, threshold=best_threshold(chance, label == 1))


def unit_kind(experiment: Experiment) -> UnitKind:
    """Return the unit that the config asks for."""
    unit = experiment.calibration.unit
    if unit == "group":
        assert experiment.data.group is not None, "the config was checked"
        return UnitKind("group", experiment.data.group)
    if unit == "string":
        return UnitKind("string", experiment.split.string or experiment.data.strings[0].name)
    if unit == "row":
        return UnitKind("row", "row")
    return split_unit(experiment.data, experiment.split)


class Strata(NamedTuple):
    """Of what unit each validation row is, and which value of the column `by` it has."""

    unit: Int[np.ndarray, " n"]
    value: Int[np.ndarray, " n"] | None
    values: Sequence[str]

    def take(self, rows: Bool[np.ndarray, " n"]) -> "Strata":
        """Return those of the rows that are marked."""
        value = None if self.value is None else self.value[rows]
        return Strata(self.unit[rows], value, self.values)


def _of_task(score: Float[np.ndarray, " n"], strata: Strata, guaranteed: bool) -> TaskScores:
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
        pooled=as_saved(score_quantiles(score, strata.unit, guaranteed)),
        by_value=own,
    )


def _validation_rows(cache: Cache, seed: int, most: int) -> RowBlock:
    """Return the validation rows of a cache, of more than `most` as many drawn at random.

    The cache is read a few chunks at a time.
    """
    num_rows, block_rows = cache.layout.num_rows, 4 * rows_per_chunk(cache)
    number = SPLITS.index("validation")
    generator = np.random.default_rng(seed)
    kept: list[RowBlock] = []
    keys: list[np.ndarray] = []
    for start in range(0, num_rows, block_rows):
        block = cache.rows(start, min(start + block_rows, num_rows))
        kept.append(block.take(np.flatnonzero(block.split == number)))
        keys.append(generator.random(len(kept[-1].split)))
        if sum(map(len, keys)) > 2 * most:
            kept, keys = _least(kept, keys, most)
    return _least(kept, keys, most)[0][0]


def _least(
    kept: Sequence[RowBlock], keys: Sequence[Float[np.ndarray, " _"]], most: int
) -> tuple[list[RowBlock], list[Float[np.ndarray, " n"]]]:
    """Return the rows with the `most` least keys, in their order, as one block."""
    whole = RowBlock(
        **{
            field.name: np.concatenate([getattr(each, field.name) for each in kept])
            for field in fields(RowBlock)
        }
    )
    key = np.concatenate(keys)
    chosen = np.sort(np.argsort(key, kind="stable")[:most])
    return [whole.take(chosen)], [key[chosen]]
