"""After a training: trees on the same rows and features, and how much they and the network count.

Axes: N rows, n train rows, B validation rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import GroupKFold
from torch import Tensor
from tqdm import tqdm

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from fusionnet.blend.blend import (
    Blend,
    Blended,
    TaskBlend,
    as_learnt,
    is_blended,
    shares_in_words,
    tree_predictions,
)
from fusionnet.blend.boosting import ColumnUse, TrainRows, grown_by, tree_plan
from fusionnet.blend.columns import TreeColumns, tree_columns
from fusionnet.blend.forest import Forest
from fusionnet.blend.saved import blend_bytes, blend_path
from fusionnet.blend.weights import network_share
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.rows.tensors import RowTable, row_table
from fusionnet.rows.units import left_out_string, split_unit, unit_of_rows
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.blended import features_behind
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.vectors import vectors_of_all_strings

MOST_ROWS = 5_000_000  # of a table, all of which are read
MOST_BYTES = 2 * 2**30  # of what trees read of train rows; more rows than that are drawn from


@dataclass(frozen=True)
class Rows:
    """The rows of one split, and what trees read of them."""

    table: RowTable
    x: Float[Tensor, "B C"]


NO_TREES = Blended(Blend(TreeColumns(num_numeric=0, categories=(), strings=()), {}), {})


def blend_run(folder: Path, experiment: Experiment, cache: Cache, verbose: bool = True) -> Blended:
    """Grow trees beside the best epoch of a run that has just been trained, and write the blend.

    Says in a line how much each counts. In that of a table of more than MOST_ROWS rows the network
    is alone.
    """
    started = time.perf_counter()
    run = load_run(folder, "best", with_blend=False, with_calibration=False)
    if cache.layout.num_rows > MOST_ROWS:
        found = NO_TREES
        if verbose:
            print(f"no trees are blended in: the table has more than {MOST_ROWS:,} rows")
    else:
        found = blended(run, experiment, cache, verbose)
    content = blend_bytes(found.blend, run.run_id, run.epoch)
    write_listed(folder, run.run_id, blend_path(folder, run.name), content)
    if verbose:
        seconds = time.perf_counter() - started
        shares = shares_in_words(found.blend, run.tasks)
        print(f"blend      {shares} ({seconds:,.0f} s)", flush=True)
    return found


def blended(run: TrainedRun, experiment: Experiment, cache: Cache, progress: bool) -> Blended:
    """Return the trees of all tasks that can be blended, each with its weight."""
    ground = _ground(run, experiment, cache)
    validation = _rows_of(run, ground.block, "validation")
    judge = Rows(validation, ground.columns.matrix(validation.inputs, ground.tables))
    outputs = forward_rows(run.model, ground.vectors, validation, run.recipe.train.eval_batch_rows)
    predictions = to_units(outputs, run.tasks, run.scaling)
    found, plans = {}, {}
    wanted = [(t, task) for t, task in enumerate(run.tasks) if is_blended(task)]
    for t, task in tqdm(wanted, desc="boosting", leave=False, disable=None if progress else True):
        learned = _labelled(ground.own, t, ground.part_of)
        judged = _labelled(judge, t, np.zeros(judge.table.num_rows, dtype=np.int64))
        if not len(learned.label):
            continue
        seed, num_threads = run.recipe.train.seed, torch.get_num_threads()
        plan = tree_plan(experiment.blend, task, learned, judged, ground.use, seed, num_threads)
        forest = grown_by(plan, experiment.blend, task, learned, ground.use, seed, num_threads)
        share = _share(run, t, forest, judge, predictions)
        found[task.name], plans[task.name] = TaskBlend(share, forest), plan
    return Blended(Blend(ground.columns, found), plans)


def blended_alike(run: TrainedRun, experiment: Experiment, cache: Cache, like: Blended) -> Blend:
    """Return trees of the cache's train rows by the plans of another blend, in its shares.

    Of a target in which the network counts alone there are none.
    """
    ground = _ground(run, experiment, cache)
    found = {}
    for t, task in enumerate(run.tasks):
        if task.name in like.plans and like.blend.tasks[task.name].share < 1:
            learned = _labelled(ground.own, t, ground.part_of)
            if not len(learned.label):
                continue
            seed, num_threads = run.recipe.train.seed, torch.get_num_threads()
            plan = like.plans[task.name]
            forest = grown_by(plan, experiment.blend, task, learned, ground.use, seed, num_threads)
            found[task.name] = TaskBlend(like.blend.tasks[task.name].share, forest)
    return Blend(ground.columns, found)


@dataclass(frozen=True)
class _Ground:
    """What trees are grown on."""

    block: RowBlock
    vectors: list[Float[Tensor, "_U _E"]]  # by string column
    columns: TreeColumns
    tables: list[Float[Tensor, "_U _"]]
    own: Rows  # that train
    part_of: Int[np.ndarray, " n"]
    use: ColumnUse


def _ground(run: TrainedRun, experiment: Experiment, cache: Cache) -> _Ground:
    """Return the train rows of a cache as trees read them."""
    block = cache.rows()
    texts = {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings}
    train = _rows_of(run, block, "train")
    vectors = [vectors_of_all_strings(run, name, own) for name, own in texts.items()]
    named = zip(run.layout.strings, vectors, strict=True)
    features = [features_behind(spec, own) for spec, own in named]
    columns = tree_columns(train.inputs, list(texts.values()), features)
    parts = zip(columns.strings, texts.values(), features, strict=True)
    tables = [part.table(own, table) for part, own, table in parts]
    train = train.take(_drawn(train.num_rows, columns.num_columns, experiment.train.seed))
    return _Ground(
        block,
        vectors,
        columns,
        tables,
        Rows(train, columns.matrix(train.inputs, tables)),
        _parts(experiment, block, train.row.numpy(), list(texts.values())),
        ColumnUse(columns.num_numeric, _selections(experiment, run, columns)),
    )


def _share(
    run: TrainedRun, t: int, forest: Forest, judge: Rows, predictions: Float[Tensor, "B P"]
) -> float:
    """Return how much the network counts beside one task's trees, by what both say of rows."""
    task = run.tasks[t]
    columns, transform = prediction_columns(run.tasks)[t], run.scaling.of_target(t)
    counted = _counted(judge.table, t)
    judged = _labelled(judge, t, np.zeros(judge.table.num_rows, dtype=np.int64))
    network = as_learnt(task, predictions[counted][:, columns], transform)
    return network_share(
        task,
        network.double().numpy(),
        tree_predictions(task, forest, judge.x[counted]).double().numpy(),
        judged.label,
        judged.weight,
    )


def _rows_of(run: TrainedRun, block: RowBlock, split: str) -> RowTable:
    """Return the rows of a split as the network reads them."""
    return row_table(block, np.flatnonzero(block.split == SPLITS.index(split)), run.scaling)


def _labelled(rows: Rows, t: int, part: Int[np.ndarray, " n"]) -> TrainRows:
    """Return the rows that have a label of a target and a weight."""
    table = rows.table
    chosen = _counted(table, t).numpy()
    return TrainRows(
        rows.x.numpy()[chosen],
        table.targets[:, t].double().numpy()[chosen],
        table.weight.double().numpy()[chosen],
        part[chosen],
    )


def _drawn(num_rows: int, num_columns: int, seed: int) -> Int[Tensor, " n"]:
    """Return the positions of as many rows, in order, as MOST_BYTES have room for."""
    most = max(1, MOST_BYTES // (4 * max(1, num_columns)))
    chosen = np.arange(num_rows)
    if num_rows > most:
        chosen = np.sort(np.random.default_rng(seed).choice(num_rows, most, replace=False))
    return torch.from_numpy(chosen)


def _counted(table: RowTable, t: int) -> Bool[Tensor, " B"]:
    """Return which rows have a label of a target and a weight."""
    return table.targets[:, t].isfinite() & (table.weight > 0)


def _parts(
    experiment: Experiment,
    block: RowBlock,
    rows: Int[np.ndarray, " n"],
    texts: Sequence[Sequence[str]],
) -> Int[np.ndarray, " n"]:
    """Return which part of the train rows each is in: rows that never straddle two splits stay
    together here too. `texts` are the distinct strings, by string column.
    """
    number = experiment.blend.parts
    data, split = experiment.data, experiment.split
    together = unit_of_rows(data, split, split_unit(data, split), block, rows, texts)
    number = min(number, len(np.unique(together)))
    part = np.zeros(len(rows), dtype=np.int64)
    if number < 2:
        return part
    folds = GroupKFold(number, shuffle=True, random_state=experiment.train.seed)
    for fold, (_, left_out) in enumerate(folds.split(rows, groups=together)):
        part[left_out] = fold
    return part


def _selections(
    experiment: Experiment, run: TrainedRun, columns: TreeColumns
) -> list[Int[np.ndarray, " _"]]:
    """Return columns with fewer features of new strings, if strings are left out.

    What tells many strings that were seen apart may mislead about new ones.
    """
    string = left_out_string(experiment.data, experiment.split)
    if string is None:
        return []
    return columns.selections(string, run.layout.strings[string].feature_sets)
