"""Cross-validate an experiment: all rotations of its folds over one cache, in one process.

The cache is built once. A rotation is the cache with other folds in its splits and the statistics
of its own train rows (`embedcache.build.rotation`), so a fold's training and metrics are those that
a cache built for it would give, but no string is encoded again and no row written.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from embedcache.build.rotation import rotated
from embedcache.cache.identity import ROTATION
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.errors import RunError, SplitError
from embedcache.files import write_atomically
from embedcache.launcher import rank_environment
from embedcache.split.plan import plan_of
from embedcache.split.report import SplitCounts
from fusionnet.evaluation.crossvalidation import CrossValidation, FoldResult
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.outputs import evaluation_files
from fusionnet.evaluation.result import Evaluation
from fusionnet.experiment import Experiment
from fusionnet.recipe import observed_tasks
from fusionnet.runfolder.listing import write_listed
from fusionnet.runfolder.lock import locked
from fusionnet.train.callbacks import Record
from fusionnet.train.runlog import write_json
from fusionnet.trained.named import labels_in_words, prediction_frame
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.checked_cache import open_checked_cache
from fusionnet.workflow.folds_folder import METRICS, PREDICTIONS, FoldsFolder, open_folder
from fusionnet.workflow.recipes import recipe_of
from fusionnet.workflow.training import train_experiment


def cross_validate(
    experiment: Experiment,
    config_path: str = "CONFIG",
    resume: bool = False,
    overwrite: bool = False,
    with_baselines: bool = True,
    verbose: bool = True,
) -> CrossValidation:
    """Train and evaluate one model per fold in `run.dir`, and return what all folds found.

    The cache is built if it is not there. `resume` goes on where an earlier call ended, at
    whatever moment; `overwrite` deletes what that left. Every rotation is checked before the first
    is trained. Raises RunError for a folder of something else and for several ranks, SplitError for
    a split without folds or with a rotation that cannot be used, and what building and training
    raise.
    """
    if rank_environment(os.environ)["WORLD_SIZE"] != "1":
        raise RunError(
            "a cross-validation is one process: start it without a launcher; to train folds on"
            " several ranks, train each by itself with --set split.rotation=..."
        )
    folder = Path(experiment.run.dir)
    cache = _cache_of(experiment, config_path, verbose)
    rotations, tasks = _rotations(experiment, cache), observed_tasks(experiment.tasks, cache.layout)
    with locked(folder):
        place = open_folder(experiment, cache, resume, overwrite)
        left = [rotation for rotation in rotations if rotation not in place.done]
        # all are checked before the first is trained
        views = {rotation: _view(experiment, cache, rotation) for rotation in left}
        for rotation in left:
            shown = verbose and rotation == left[0]  # the first fold's training, as `train` does
            own, view = _of_fold(experiment, place, rotation), views.pop(rotation)
            epochs = recipe_of(own, view).train.epochs
            bar = _EpochBar(epochs, rotation, verbose and not shown)
            with bar.shown:
                train_experiment(own, config_path, True, False, (bar,), shown, view)
            place.finish(_evaluated(place.fold(rotation), view, rotation, with_baselines))
            if verbose:
                number = rotations.index(rotation) + 1
                print(place.done[rotation].line(tasks, number, len(rotations)), flush=True)
        done = tuple(place.done[rotation] for rotation in rotations)
        result = CrossValidation(folder, tasks, cache.layout.num_rows, done)
        _write_predictions(place, rotations, cache.layout.num_rows)
        write_json(folder / METRICS, result.to_json())
    return result


class _EpochBar:
    """Shows a fold's epochs as they end."""

    def __init__(self, epochs: int, rotation: int, wanted: bool) -> None:
        what = f"rotation {rotation}"
        hidden = None if wanted else True
        self.shown = tqdm(total=epochs, desc=what, unit="epoch", leave=False, disable=hidden)

    def on_epoch_end(self, record: Record) -> None:
        """Go on by one."""
        self.shown.update()


def _cache_of(experiment: Experiment, config_path: str, verbose: bool) -> Cache:
    """Return the experiment's cache, built if there is none."""
    if not os.path.lexists(experiment.cache.path):
        report = build_experiment(experiment)
        if verbose:
            print(report.summary(), flush=True)
    return open_checked_cache(experiment, config_path)


def _rotations(experiment: Experiment, cache: Cache) -> range:
    """Return the rotations that test each row once at most; raises SplitError without any."""
    split = experiment.split
    if split.strategy == "column":
        raise SplitError(
            "split.strategy 'column' cannot be cross-validated: the table itself says which rows"
            " train. Give it a column of fold numbers (strategy folds), or another strategy"
        )
    try:
        return plan_of(split, cache.layout.folds).rotations
    except ValueError as error:
        raise SplitError(f"split: {error}") from None


def _view(experiment: Experiment, cache: Cache, rotation: int) -> Cache:
    """Return the cache in another rotation, which is checked."""
    if cache.identity.entries[ROTATION] == str(rotation):
        return cache
    return rotated(cache, experiment.split.model_copy(update={"rotation": rotation}))


def _of_fold(experiment: Experiment, place: FoldsFolder, rotation: int) -> Experiment:
    """Return the experiment of one fold."""
    run = experiment.run.model_copy(update={"dir": str(place.fold(rotation))})
    split = experiment.split.model_copy(update={"rotation": rotation})
    return experiment.model_copy(update={"run": run, "split": split})


def _evaluated(folder: Path, cache: Cache, rotation: int, with_baselines: bool) -> FoldResult:
    """Return the metrics of a fold's run on its test rows, and write its files."""
    run = load_run(folder)
    evaluation = evaluate_run(run, cache, "test", progress=False, with_baselines=with_baselines)
    content = json.dumps(evaluation.to_json(run), indent=1, allow_nan=False)
    metrics_file = evaluation_files(folder, "test").metrics
    write_listed(folder, run.run_id, metrics_file, f"{content}\n".encode())
    buffer = io.BytesIO()
    _predictions(run, evaluation, rotation).write_parquet(buffer)
    write_listed(folder, run.run_id, folder / PREDICTIONS, buffer.getvalue())
    counts = SplitCounts.model_validate(cache.report["split"])
    rows = {line.split: line.rows for line in counts.lines[-len(SPLITS) :]}
    return FoldResult(
        rotation=rotation,
        num_train=rows["train"],
        num_test=rows["test"],
        epoch=run.epoch,
        metrics=evaluation.metrics,
        baselines=evaluation.baselines,
    )


def _predictions(run: TrainedRun, evaluation: Evaluation, rotation: int) -> pl.DataFrame:
    """Return the predictions of a fold's test rows beside their labels, in the table's words."""
    observed = {
        f"observed_{task.column}": labels_in_words(task, evaluation.targets[:, t])
        for t, task in enumerate(run.tasks)
    }
    fold = np.full(len(evaluation.rows), rotation, dtype=np.int32)
    own = pl.DataFrame({"row": evaluation.rows, "fold": fold, **observed})
    return own.hstack(prediction_frame(run.tasks, evaluation.predictions, evaluation.scores))


def _write_predictions(place: FoldsFolder, rotations: range, num_rows: int) -> None:
    """Write the predictions of all folds in table order, nulls for rows that no fold tests."""
    parts = [pl.read_parquet(place.fold(rotation) / PREDICTIONS) for rotation in rotations]
    rows = pl.DataFrame({"row": pl.int_range(num_rows, eager=True)})
    buffer = io.BytesIO()
    rows.join(pl.concat(parts), on="row", how="left", maintain_order="left").write_parquet(buffer)
    write_atomically(place.path / PREDICTIONS, buffer.getvalue())
