"""Train the model of an experiment, from its cache to a run folder that others can read."""

import shutil
import time
from pathlib import Path
from typing import Any

from embedcache.cache.reader import Cache
from fusionnet.config import PrecisionName
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.recipe import Recipe, observed_tasks
from fusionnet.train.footprint import check_memory
from fusionnet.train.loop import Trainer, make_trainer, train_run
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.summary import summary
from fusionnet.train.world import World
from fusionnet.trained.export import export_run
from fusionnet.trained.folder import check_unused
from fusionnet.workflow.checked_cache import open_checked_cache


def train_experiment(
    experiment: Experiment, config_path: str, resume: bool = False, overwrite: bool = False
) -> None:
    """Check everything that can be wrong, then train, then export, on every rank alike.

    `config_path` is named in messages. Raises RunError where the run folder holds an earlier run
    and neither `resume` nor `overwrite` says what becomes of it.
    """
    folder = Path(experiment.run.dir)
    if resume:
        experiment = _in_the_runs_precision(experiment, folder)
    cache = open_checked_cache(experiment, config_path)
    check_unused(folder, resume, overwrite)
    world, recipe = World(), recipe_of(experiment, cache)
    memory = check_memory(recipe, cache, world)
    if world.is_main:
        print(f"memory     {memory}", flush=True)
    trainer = make_trainer(recipe, experiment.optim, cache, world)
    settled = experiment.model_copy(update={"train": trainer.recipe.train})
    if world.is_main:
        print(summary(trainer, experiment.train.precision))
        _make_folder(folder, settled, overwrite)
    world.barrier()
    _train_and_export(trainer, settled, folder, resume)
    world.close()


def describe_experiment(experiment: Experiment, config_path: str) -> str:
    """Return what would be trained (rows, steps, parameters), on rank 0; nothing on the others."""
    cache = open_checked_cache(experiment, config_path)
    world, recipe = World(), recipe_of(experiment, cache)
    memory = check_memory(recipe, cache, world)
    trainer = make_trainer(recipe, experiment.optim, cache, world)
    told = f"memory     {memory}\n{summary(trainer, experiment.train.precision)}\n"
    text = told if world.is_main else ""
    world.close()
    return text


def recipe_of(experiment: Experiment, cache: Cache) -> Recipe:
    """Return what the experiment's model is made of, for the targets that the cache has."""
    return Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        tuple(column.encoder or experiment.encoder for column in experiment.data.strings),
        experiment.model,
        experiment.loss,
        experiment.train,
    )


def _train_and_export(trainer: Trainer, experiment: Experiment, folder: Path, resume: bool) -> None:
    """Run the epochs, then write what others read."""
    cache, name = trainer.cache, experiment.run.name
    shareable: dict[str, Any] = {
        "layout": cache.layout.model_dump_json(),
        "scaling": cache.scaling.to_json(),
        "strings": {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings},
        "identity": dict(cache.identity.entries),
    }
    started = time.perf_counter()
    files = RunFiles(folder, name, experiment.model_dump(mode="json"), shareable)
    records = train_run(trainer, files, resume)
    if trainer.world.is_main:
        export_run(folder)
        best = min(records, key=lambda record: record["val_loss"])
        print(
            f"trained {len(records)} epochs in {time.perf_counter() - started:,.0f} s, best"
            f" validation loss {best['val_loss']:.4f} in epoch {best['epoch']}, peak memory"
            f" {peak_rss_bytes() / 2**30:.2f} GiB\nrun folder: {folder}; evaluate it with:"
            f" fusionnet evaluate --run {folder}"
        )


def _make_folder(folder: Path, experiment: Experiment, overwrite: bool) -> None:
    """Make the run folder and write the resolved config into it; all was checked before."""
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{experiment.run.name}_config.yaml"
    config.write_text(experiment.to_yaml(), encoding="utf-8")


def _in_the_runs_precision(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with `train.precision: auto` settled as the folder's run was started.

    A run that goes on elsewhere goes on in the same numbers.
    """
    file = folder / f"{experiment.run.name}_config.yaml"
    if experiment.train.precision != "auto" or not file.is_file():
        return experiment
    precision: PrecisionName = load_experiment(file).train.precision
    train = experiment.train.model_copy(update={"precision": precision})
    return experiment.model_copy(update={"train": train})
