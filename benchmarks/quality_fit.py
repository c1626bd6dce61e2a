"""What `quality` fits and scores: a model of one experiment, on the test rows of its cache."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.harness.setting import experiment_of
from benchmarks.harness.stepper import world
from embedcache.build.decide import Existing
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.split import SPLITS
from fusionnet.experiment import Experiment
from fusionnet.metrics import task_metrics
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.rows.tensors import load_rows
from fusionnet.train.loop import run_epoch
from fusionnet.train.resume import Position
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.train.validation import StringTables
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.recipes import recipe_of


def cached(folder: Path, overrides: list[str]) -> Experiment:
    """Return the experiment with its cache built."""
    mode = "frozen" if "encoder.mode=frozen" in overrides else "per_step"
    experiment = experiment_of(folder, mode, "auto", overrides)
    build_experiment(experiment, Existing.OVERWRITE)
    return experiment


class _Unwritten(RunFiles):
    """The files of a run that writes none: checkpoints inside an epoch are off."""

    def begin(self) -> None:
        """Leave the folder alone."""


def fit(experiment: Experiment) -> dict[str, dict[str, float | None]]:
    """Train a model and return its test metrics at the epoch of the lowest validation loss."""
    cache = open_cache(experiment.cache.path)
    trainer = make_trainer(recipe_of(experiment, cache), experiment.optim, cache, world())
    files = _Unwritten(Path(experiment.run.dir), experiment.run.name, {}, {})
    best, predictions = float("inf"), None
    for epoch in range(experiment.train.epochs):
        record, tables = run_epoch(trainer, Position(epoch), files)
        if record["val_loss"] < best or predictions is None:
            best, predictions = record["val_loss"], _predict(trainer, cache, tables)
    test = load_rows(cache, "test")
    return task_metrics(trainer.recipe.tasks, test.targets.numpy().astype(np.float64), predictions)


def _predict(trainer: Trainer, cache: Cache, tables: StringTables) -> Float[np.ndarray, "N T"]:
    """Return the test rows' predictions in raw units, scores for binary tasks."""
    rows = load_rows(cache, "test", world().device)
    outputs = forward_rows(trainer.model, tables, rows, trainer.recipe.train.eval_batch_rows)
    in_units = to_units(outputs, trainer.recipe.tasks, cache.scaling, "score")
    return in_units.cpu().numpy().astype(np.float64)


def target_index(cache: Cache, column: str) -> int:
    """Return which of the cache's targets a column is."""
    return [target.column for target in cache.layout.targets].index(column)


def score(
    cache: Cache, experiment: Experiment, predictions: dict[str, Float[np.ndarray, " N"]]
) -> dict[str, dict[str, float | None]]:
    """Return the test metrics of predictions for the whole table, by target column."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    by_column = {task.column: task for task in experiment.tasks}
    tasks = [by_column[column] for column in predictions]
    targets = [rows.targets[test, target_index(cache, column)] for column in predictions]
    predicted = [values[test] for values in predictions.values()]
    return task_metrics(
        tasks, np.stack(targets, axis=1).astype(np.float64), np.stack(predicted, axis=1)
    )
