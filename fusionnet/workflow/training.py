"""Train the model of an experiment, from its cache to a run folder that others can read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from embedcache.cache.reader import Cache
from embedcache.errors import UserError
from fusionnet.blend.saved import blend_path
from fusionnet.config.train import VAL_LOSS
from fusionnet.experiment import Experiment
from fusionnet.runfolder.claim import check_claim
from fusionnet.runfolder.lock import locked
from fusionnet.train.callbacks import Callbacks, Record
from fusionnet.train.footprint import check_memory
from fusionnet.train.loop import train_run
from fusionnet.train.monitor import best_epoch
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.summary import summary
from fusionnet.train.trackers import check_trackers
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.train.world import World, losses_named
from fusionnet.trained.export import export_run
from fusionnet.trained.weights import own_random_state
from fusionnet.workflow.begun import as_begun
from fusionnet.workflow.calibrating import write_calibration
from fusionnet.workflow.checked_cache import open_checked_cache
from fusionnet.workflow.left_out import forget, train_beside, views_of
from fusionnet.workflow.recipes import files_of, recipe_of


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
    called, asked = Callbacks(callbacks), experiment
    check_trackers(experiment.train.trackers)
    folder = Path(experiment.run.dir)
    if resume:
        experiment = as_begun(experiment, folder)
    cache = cache or open_checked_cache(experiment, config_path)
    world, recipe = World(), recipe_of(experiment, cache)
    views = views_of(experiment, cache)
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
        settled = experiment.model_copy(
            update={"train": trainer.recipe.train, "model": recipe.model}
        )
        if world.is_main and verbose:
            print(summary(trainer, asked))
        records = _train_and_export(trainer, settled, folder, resume, called, views)
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
        text = f"{first}{summary(trainer, experiment)}\n"
    world.close()
    return text


def _train_and_export(
    trainer: Trainer,
    experiment: Experiment,
    folder: Path,
    resume: bool,
    callbacks: Callbacks,
    views: Sequence[Cache],
) -> list[Record]:
    """Run the epochs, and those of the trainings beside it; then write what others read."""
    cache, name = trainer.cache, experiment.run.name
    started, files = time.perf_counter(), files_of(trainer, experiment, folder)
    records = train_run(trainer, files, resume, callbacks)
    if views:
        run = folder, files.run_id, best_epoch(records, trainer.recipe.train.monitor)
        train_beside(run, experiment, views, trainer.world, trainer.verbose)
    if trainer.world.is_main:
        blend = None
        if experiment.blend.boosting:
            # not at the top: scikit-learn and LightGBM take a second to import
            from fusionnet.workflow.blending import blend_run

            blend = blend_run(folder, experiment, cache, trainer.verbose)
        else:  # what an earlier training of the same run left
            blend_path(folder, name).unlink(missing_ok=True)
        write_calibration(folder, experiment, cache, trainer.verbose, views, blend)
        forget(folder)
        export_run(folder)
    if trainer.world.is_main and trainer.verbose:
        _show_baselines(trainer, records)
        best = _best_in_words(records, trainer.recipe.train.monitor)
        if "stopped" in records[-1]:
            print(f"stopped after epoch {len(records)}: {records[-1]['stopped']}")
        print(
            f"trained {len(records)} epochs in {time.perf_counter() - started:,.0f} s,"
            f" {best}, peak memory {peak_rss_bytes() / 2**30:.2f} GiB\n"
            f"run folder: {folder}; evaluate it with: fusionnet evaluate --run {folder}"
        )
    return records


def _show_baselines(trainer: Trainer, records: Sequence[Record]) -> None:
    """Print what the best epoch is to be measured against."""
    train = trainer.recipe.train
    if train.baselines:
        # not at the top: scikit-learn's boosting takes a second to import
        from fusionnet.evaluation.beside import beside_training

        best = records[best_epoch(records, train.monitor) - 1]
        lines = beside_training(trainer.cache, trainer.recipe.tasks, best, progress=True)
        print("\n".join(lines), flush=True)


def _best_in_words(records: Sequence[Record], monitor: str) -> str:
    """Return which epoch is the best, and by what."""
    best = best_epoch(records, monitor)
    value = records[best - 1][monitor]
    if value is None:
        return f"the last epoch, {best}, is the best for want of validation labels"
    name = "validation loss" if monitor == VAL_LOSS else monitor
    return f"best {name} {value:.4f} in epoch {best}"


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
