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
    TaskBlend,
    as_learnt,
    is_blended,
    shares_in_words,
    tree_predictions,
)
from fusionnet.blend.boosting import ColumnUse, TrainRows, grown
from fusionnet.blend.columns import TreeColumns, tree_columns
from fusionnet.blend.saved import blend_bytes, blend_path
from fusionnet.blend.weights import network_share
from fusionnet.config.blend import BlendConfig
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


def blend_run(folder: Path, experiment: Experiment, cache: Cache, verbose: bool = True) -> None:
    """Grow trees beside the best epoch of a run that has just been trained, and write the blend.

    Says in a line how much each counts. In that of a table of more than MOST_ROWS rows the network
    is alone.
    """
    started = time.perf_counter()
    run = load_run(folder, "best", with_blend=False, with_calibration=False)
    if cache.layout.num_rows > MOST_ROWS:
        blend = Blend(TreeColumns(num_numeric=0, categories=(), strings=()), {})
        if verbose:
            print(f"no trees are blended in: the table has more than {MOST_ROWS:,} rows")
    else:
        blend = blended(run, experiment, cache, verbose)
    content = blend_bytes(blend, run.run_id, run.epoch)
    write_listed(folder, run.run_id, blend_path(folder, run.name), content)
    if verbose:
        seconds = time.perf_counter() - started
        print(f"blend      {shares_in_words(blend, run.tasks)} ({seconds:,.0f} s)", flush=True)


def blended(run: TrainedRun, experiment: Experiment, cache: Cache, progress: bool) -> Blend:
    """Return the trees of all tasks that can be blended, each with its weight."""
    block = cache.rows()
    texts = {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings}
    train = _rows_of(run, block, "train")
    vectors = [vectors_of_all_strings(run, name, own) for name, own in texts.items()]
    named = zip(run.layout.strings, vectors, strict=True)
    features = [features_behind(spec, own) for spec, own in named]
    columns = tree_columns(train.inputs, list(texts.values()), features)
    parts = zip(columns.strings, texts.values(), features, strict=True)
    tables = [part.table(own, table) for part, own, table in parts]
    validation = _rows_of(run, block, "validation")
    train = train.take(_drawn(train.num_rows, columns.num_columns, experiment.train.seed))
    own = Rows(train, columns.matrix(train.inputs, tables))
    judge = Rows(validation, columns.matrix(validation.inputs, tables))
    outputs = forward_rows(run.model, vectors, validation, run.recipe.train.eval_batch_rows)
    predictions = to_units(outputs, run.tasks, run.scaling)
    part_of = _parts(experiment, block, train.row.numpy(), list(texts.values()))
    use = ColumnUse(columns.num_numeric, _selections(experiment, run, columns))
    found = {}
    wanted = [(t, task) for t, task in enumerate(run.tasks) if is_blended(task)]
    for t, task in tqdm(wanted, desc="boosting", leave=False, disable=None if progress else True):
        blend = _of_task(run, experiment.blend, t, use, own, judge, part_of, predictions)
        if blend is not None:
            found[task.name] = blend
    return Blend(columns, found)


def _of_task(
    run: TrainedRun,
    config: BlendConfig,
    t: int,
    use: ColumnUse,
    own: Rows,
    judge: Rows,
    part_of: Int[np.ndarray, " n"],
    predictions: Float[Tensor, "B P"],
) -> TaskBlend | None:
    """Return one task's trees and weight; None where no train row has a label."""
    task = run.tasks[t]
    learned = _labelled(own, t, part_of)
    judged = _labelled(judge, t, np.zeros(judge.table.num_rows, dtype=np.int64))
    if not len(learned.label):
        return None
    seed, num_threads = run.recipe.train.seed, torch.get_num_threads()
    forest = grown(config, task, learned, judged, use, seed, num_threads)
    columns, transform = prediction_columns(run.tasks)[t], run.scaling.of_target(t)
    counted = _counted(judge.table, t)
    network = as_learnt(task, predictions[counted][:, columns], transform)
    share = network_share(
        task,
        network.double().numpy(),
        tree_predictions(task, forest, judge.x[counted]).double().numpy(),
        judged.label,
        judged.weight,
    )
    return TaskBlend(share, forest)


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
