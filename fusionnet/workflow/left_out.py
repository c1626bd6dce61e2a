"""Trainings beside a run, each without another part of the rows that it read or was chosen on.

What these say of their parts is said of rows that decided nothing: they take as many epochs as the
run's best one had, and no part chooses among them. They have the run's settings, and no trees (see
`calibrating`). Each is a run in the run's folder until all is measured, so one that is broken off
goes on where it was.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from embedcache.cache.reader import Cache
from embedcache.errors import RunError
from embedcache.files import write_atomically
from fusionnet.experiment import Experiment
from fusionnet.runfolder.listing import list_files, read_listing
from fusionnet.train.callbacks import Callbacks, Record
from fusionnet.train.loop import train_run
from fusionnet.train.trainer import make_trainer
from fusionnet.train.world import World
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.recipes import files_of, recipe_of

FOLDER = "left_out"
_STATE = "left_out.json"  # of what the trainings in it are parts


def views_of(experiment: Experiment, cache: Cache) -> list[Cache]:
    """Return the cache as each training beside the run reads it; none unless the config asks.

    Raises SplitError where the split has no such parts.
    """
    number = experiment.calibration.folds
    if not number:
        return []
    # not at the top: a training reads no table, for which that would import polars
    from embedcache.build.rotation import left_out_in_turn

    return left_out_in_turn(cache, experiment.split, number)


def train_beside(
    run: tuple[Path, str, int],
    experiment: Experiment,
    views: Sequence[Cache],
    world: World,
    verbose: bool,
) -> None:
    """Train on each view as often as it is not done yet (collective).

    `run` is the folder of the run, its id and its best epoch; `experiment` its own, with what the
    config left open settled.
    """
    folder, run_id, epochs = run
    place = folder / FOLDER
    if world.is_main:
        state = {"run": run_id, "best": epochs, "epochs": experiment.train.epochs}
        _claim(folder, run_id, state | {"parts": len(views)})
    world.barrier()
    for number, view in enumerate(views):
        part = place / str(number)
        if world.broadcast(world.is_main and _is_done(part, epochs, view)):
            continue
        own = _beside(experiment, part)
        if world.is_main:
            _begin(part, epochs)
        world.barrier()
        trainer = make_trainer(recipe_of(own, view), own.optim, view, world, verbose=False)
        hidden = None if verbose and world.is_main else True
        name = f"without part {number + 1} of {len(views)}"
        with tqdm(total=epochs, desc=name, unit="epoch", leave=False, disable=hidden) as bar:
            train_run(trainer, files_of(trainer, own, part), True, Callbacks([_Until(epochs, bar)]))


def run_of_part(folder: Path, number: int) -> TrainedRun:
    """Return what was trained without a part, after its last epoch."""
    return load_run(folder / FOLDER / str(number), "final")


def forget(folder: Path) -> None:
    """Delete the trainings beside a run, if it has listed any; a folder of this name that it has
    not is somebody's.
    """
    listing = read_listing(folder)
    if listing is not None and f"{FOLDER}/" in listing.files and (folder / FOLDER).is_dir():
        shutil.rmtree(folder / FOLDER)


class _Until:
    """Ends a training after its last epoch, and shows each."""

    def __init__(self, epochs: int, bar: tqdm) -> None:
        self.epochs, self.bar = epochs, bar

    def on_epoch_end(self, record: Record) -> bool:
        """Go on by one."""
        self.bar.update()
        return bool(record["epoch"] >= self.epochs)


def _claim(folder: Path, run_id: str, state: dict[str, object]) -> None:
    """Make the folder of the trainings beside a run, empty unless they are of this state."""
    list_files(folder, run_id, [f"{FOLDER}/"])
    file, text = folder / FOLDER / _STATE, json.dumps(state)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        forget(folder)
        file.parent.mkdir()
        write_atomically(file, text.encode())


def _begin(part: Path, epochs: int) -> None:
    """Make a part's folder, empty where a kill came after the last epoch and before the end."""
    try:
        has_all = load_run(part, "last").epoch >= epochs
    except RunError:
        has_all = False
    if has_all:
        shutil.rmtree(part)
    part.mkdir(exist_ok=True)


def _is_done(part: Path, epochs: int, view: Cache) -> bool:
    """Return whether a part's training has come to its end, on the rows of this view."""
    try:
        run = load_run(part, "final")
    except RunError:
        return False
    return run.epoch == epochs and run.identity == dict(view.identity.entries)


def _beside(experiment: Experiment, part: Path) -> Experiment:
    """Return the experiment of a training beside the run, which nothing ends early."""
    train = experiment.train
    stopping = train.early_stopping.model_copy(update={"patience": train.epochs})
    changed = {"early_stopping": stopping, "baselines": False, "trackers": (), "prove": 0}
    return experiment.model_copy(
        update={
            "run": experiment.run.model_copy(update={"dir": str(part)}),
            "train": train.model_copy(update=changed),
        }
    )
