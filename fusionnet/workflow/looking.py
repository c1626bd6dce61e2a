"""What rows that a run did not read say of its predictions: validation rows, or left-out parts.

Axes: n rows that are looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from fusionnet.blend.blend import Blended
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment
from fusionnet.model.forward import forward_rows
from fusionnet.rows.tensors import row_table, rows_per_chunk
from fusionnet.rows.units import UnitKind, split_unit, unit_of_rows
from fusionnet.trained.blended import found_of, tree_tables
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import as_learnt, codes_of, score_scales
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.left_out import run_of_part

MOST_ROWS = 50_000  # of those that can be looked at; of more, as many are drawn


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


class Looked(NamedTuple):
    """What one target's labelled rows say of its predictions."""

    strata: Strata
    predicted: Float[Tensor, "n K"]
    label: Float[np.ndarray, " n"]  # in the target's unit; of classes their numbers
    score: Float[np.ndarray, " n"] | None  # of a number: how far off in units of the row's scale


def looked_at(
    run: TrainedRun,
    experiment: Experiment,
    cache: Cache,
    views: Sequence[Cache],
    blend: Blended | None,
) -> dict[str, Looked]:
    """Return what rows that it did not read say of a run, by target with labels.

    These are the cache's validation rows, or those of all views, of the trainings beside the run.
    """
    if not views:
        return _looked_at(run, run, experiment, cache, 1)
    parts = [
        _looked_at(part, run, experiment, view, len(views))
        for view, part in zip(views, _parts(run, experiment, views, blend), strict=True)
    ]
    return _joined(parts, unit_kind(experiment))


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
