"""Train the model of an experiment, from its cache to a run folder that others can read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from embedcache.cache.reader import Cache
from embedcache.errors import UserError
from fusionnet.config.train import PrecisionName
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.recipe import Recipe, observed_tasks
from fusionnet.runfolder.claim import check_claim
from fusionnet.runfolder.lock import locked
from fusionnet.train.callbacks import Callbacks, Record
from fusionnet.train.footprint import check_memory
from fusionnet.train.loop import train_run
from fusionnet.train.runfiles import RunFiles, best_epoch
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.summary import summary
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.train.world import World, losses_named
from fusionnet.trained.export import export_run
from fusionnet.trained.weights import own_random_state
from fusionnet.workflow.checked_cache import open_checked_cache


def train_experiment(
    experiment: Experiment,
    config_path: str,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[object] = (),
    verbose: bool = True,
    cache: Cache | None = None,
) -> list[Record]:
    """Check everything that can be wrong, train, export, and return the log's record of each epoch.

    `config_path` is named in messages, `cache` is the experiment's own if it is open and checked.
    Callbacks (`fusionnet.Callback`) are called by rank 0 and may end the training; what they are is
    not kept with the run. Not `verbose`: nothing is printed. A process of no launcher trains
    without DeepSpeed where it can; its random numbers and threads are afterwards what they were.
    Raises RunError where the run folder holds an earlier run and neither `resume` nor `overwrite`
    says what becomes of it, or where another process trains there. An earlier run is deleted when
    the first step of the new one is done.
    """
    called = Callbacks(callbacks)
    folder = Path(experiment.run.dir)
    if resume:
        experiment = _in_the_runs_precision(experiment, folder)
    cache = cache or open_checked_cache(experiment, config_path)
    world, recipe = World(), recipe_of(experiment, cache)
    with (
        losses_named(world.rank),
        _claimed(world, experiment, resume, overwrite),
        own_random_state(),
        _own_threads(),
    ):
        memory = check_memory(recipe, cache, world)
        if world.is_main and verbose and memory is not None:
            print(f"memory     {memory}", flush=True)
        trainer = make_trainer(recipe, experiment.optim, cache, world, verbose=verbose)
        settled = experiment.model_copy(update={"train": trainer.recipe.train})
        if world.is_main and verbose:
            print(summary(trainer, experiment.train.precision))
        records = _train_and_export(trainer, settled, folder, resume, called)
    world.close()
    return records


def describe_experiment(experiment: Experiment, config_path: str) -> str:
    """Return what would be trained (rows, steps, parameters), on rank 0; nothing on the others."""
    cache = open_checked_cache(experiment, config_path)
    world, recipe = World(), recipe_of(experiment, cache)
    memory = check_memory(recipe, cache, world)
    trainer = make_trainer(recipe, experiment.optim, cache, world)
    text = ""
    if world.is_main:
        first = "" if memory is None else f"memory     {memory}\n"
        text = f"{first}{summary(trainer, experiment.train.precision)}\n"
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


def _train_and_export(
    trainer: Trainer, experiment: Experiment, folder: Path, resume: bool, callbacks: Callbacks
) -> list[Record]:
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
    records = train_run(trainer, files, resume, callbacks)
    if trainer.world.is_main:
        export_run(folder)
    if trainer.world.is_main and trainer.verbose:
        best = records[best_epoch(records) - 1]
        if "stopped" in records[-1]:
            print(f"stopped after epoch {len(records)}: {records[-1]['stopped']}")
        print(
            f"trained {len(records)} epochs in {time.perf_counter() - started:,.0f} s,"
            f" {_best_in_words(best)}, peak memory {peak_rss_bytes() / 2**30:.2f} GiB\n"
            f"run folder: {folder}; evaluate it with: fusionnet evaluate --run {folder}"
        )
    return records


def _best_in_words(record: Record) -> str:
    """Return which epoch is the best, and by what."""
    if record["val_loss"] is None:
        return f"the last epoch, {record['epoch']}, is the best for want of validation labels"
    return f"best validation loss {record['val_loss']:.4f} in epoch {record['epoch']}"


@contextmanager
def _claimed(world: World, experiment: Experiment, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the run folder's lock, in rank 0; what forbids that is raised on every rank alike."""
    refusal: UserError | None = None
    with ExitStack() as held:
        if world.is_main:
            try:
                held.enter_context(locked(Path(experiment.run.dir)))
                check_claim(experiment, resume, overwrite)
            except UserError as error:
                refusal = error
        refusal = world.broadcast(refusal)
        if refusal is not None:
            raise refusal
        yield


@contextmanager
def _own_threads() -> Iterator[None]:
    """Give torch its number of threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
