"""After a training: how far its best epoch is off on validation rows, as widths of intervals.

The best epoch, and the weights of a blend, were chosen on the same rows, so the intervals are a
little too narrow: by how much is seen on test rows, which the evaluation counts.

Axes: n validation rows.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment
from fusionnet.intervals.conformal import floor_of, score_quantiles
from fusionnet.intervals.saved import Intervals, TaskIntervals, as_saved, intervals_path
from fusionnet.model.forward import forward_rows
from fusionnet.rows.tensors import row_table, rows_per_chunk
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.blended import found_of, tree_tables
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.uncertain import as_learnt, codes_of, score_scales
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.units import UnitKind, split_unit, unit_of_rows

MOST_ROWS = 200_000  # validation rows that are looked at; of more, as many are drawn
LEAST_ROWS = 50  # of a value of the column `by`
SHOWN = 90  # percent


def write_intervals(folder: Path, experiment: Experiment, cache: Cache, verbose: bool) -> None:
    """Write how wide the intervals of a run that has just been trained must be; say so in a line.

    A run without labelled validation rows has none.
    """
    run = load_run(folder, "best")
    intervals = measured(run, experiment, cache)
    content = f"{intervals.model_dump_json(indent=1)}\n".encode()
    write_listed(folder, run.run_id, intervals_path(folder, run.name), content)
    if verbose and intervals.tasks:
        print(f"intervals  {in_words(intervals)}", flush=True)


def in_words(intervals: Intervals) -> str:
    """Return what the intervals are of, and what they promise at SHOWN percent."""
    name, task = next(iter(intervals.tasks.items()))
    unit = "rows" if intervals.unit == "row" else f"values of {intervals.unit_name}"
    floor = floor_of(SHOWN, task.num_units, intervals.guaranteed)
    more = f" and {len(intervals.tasks) - 1} more" if len(intervals.tasks) > 1 else ""
    return (
        f"of {name}{more} from {task.num_rows:,} validation rows, {task.num_units:,} {unit}: those"
        f" for {SHOWN} % of rows hold at least {floor:.0f} % whatever the errors are like"
    )


def measured(run: TrainedRun, experiment: Experiment, cache: Cache) -> Intervals:
    """Return the scores' quantiles of a run's regression targets on validation rows."""
    config = experiment.intervals
    kind = unit_kind(experiment)
    texts = {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings}
    block = _validation_rows(cache, experiment.train.seed)
    rows = row_table(block, np.arange(len(block.split)), run.scaling)
    vectors = [vectors_of_all_strings(run, name, own) for name, own in texts.items()]
    outputs = forward_rows(run.model, vectors, rows, run.recipe.train.eval_batch_rows)
    found = found_of(run, outputs, rows.inputs, tree_tables(run, texts, vectors))
    predictions, scales = found.in_units(run), score_scales(run, outputs)
    unit = unit_of_rows(experiment, kind, block, np.arange(rows.num_rows), list(texts.values()))
    value, values = np.zeros(rows.num_rows, dtype=np.int64), [""]
    if config.by is not None:
        value, found_values = codes_of(run, config.by, rows.inputs, texts)
        values = list(found_values)
    tasks = {}
    for t, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        labelled = (rows.targets[:, t].isfinite() & (rows.weight > 0)).numpy()
        if task.kind != "regression" or not labelled.any():
            continue
        off = (rows.targets[:, t : t + 1].double() - as_learnt(run, t, predictions[:, own])).abs()
        score = (off.squeeze(1) / scales[:, t]).numpy()[labelled]
        tasks[task.name] = _of_task(
            score, unit[labelled], value[labelled], values, config.by is not None, config.guaranteed
        )
    return Intervals(
        run_id=run.run_id,
        epoch=run.epoch,
        unit=kind.unit,
        unit_name=kind.column,
        by=config.by,
        guaranteed=config.guaranteed,
        tasks=tasks,
    )


def unit_kind(experiment: Experiment) -> UnitKind:
    """Return the unit that the config asks for."""
    unit = experiment.intervals.unit
    if unit == "group":
        assert experiment.data.group is not None, "the config was checked"
        return UnitKind("group", experiment.data.group)
    if unit == "string":
        return UnitKind("string", experiment.split.string or experiment.data.strings[0].name)
    return UnitKind("row", "row") if unit == "row" else split_unit(experiment)


def _of_task(
    score: Float[np.ndarray, " n"],
    unit: Int[np.ndarray, " n"],
    value: Int[np.ndarray, " n"],
    values: Sequence[str],
    by_value: bool,
    guaranteed: bool,
) -> TaskIntervals:
    """Return one target's quantiles, of all rows and of values that have enough of them."""
    own: dict[str, tuple[float | None, ...]] = {}
    for code, count in zip(*np.unique(value, return_counts=True), strict=True):
        if by_value and count >= LEAST_ROWS:
            chosen = value == code
            own[values[code]] = as_saved(score_quantiles(score[chosen], unit[chosen], guaranteed))
    return TaskIntervals(
        num_rows=len(score),
        num_units=len(np.unique(unit)),
        pooled=as_saved(score_quantiles(score, unit, guaranteed)),
        by_value=own,
    )


def _validation_rows(cache: Cache, seed: int) -> RowBlock:
    """Return the validation rows of a cache, of very many as many as MOST_ROWS drawn at random.

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
        if sum(map(len, keys)) > 2 * MOST_ROWS:
            kept, keys = _least(kept, keys)
    return _least(kept, keys)[0][0]


def _least(
    kept: Sequence[RowBlock], keys: Sequence[Float[np.ndarray, " _"]]
) -> tuple[list[RowBlock], list[Float[np.ndarray, " n"]]]:
    """Return the rows with the MOST_ROWS least keys, in their order, as one block."""
    whole = RowBlock(
        **{
            field.name: np.concatenate([getattr(each, field.name) for each in kept])
            for field in fields(RowBlock)
        }
    )
    key = np.concatenate(keys)
    chosen = np.sort(np.argsort(key, kind="stable")[:MOST_ROWS])
    return [whole.take(chosen)], [key[chosen]]
