"""Whether a training may write into its run folder, found out before any work is done.

A run has a folder of its own. Of what a folder holds, only what a run wrote is ever replaced; a
folder with anything else is no place for a new run, and none is where the table, the cache or an
encoder lies.
"""

import os
from pathlib import Path

from embedcache.errors import RunError
from fusionnet.experiment import Experiment
from fusionnet.runfolder.listing import Listing, foreign_files, read_listing, some_of

ELSEWHERE = "choose another folder with --set run.dir=..."


def check_claim(experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Raise RunError unless the run may be trained in `run.dir`, as the command line asks."""
    folder = Path(experiment.run.dir)
    try:
        _check_place(folder)
        listing = read_listing(folder)
        foreign = foreign_files(folder) if folder.exists() else []
    except OSError as error:
        raise RunError(f"run.dir {folder} cannot be used: {error}; {ELSEWHERE}") from None
    if listing is None:
        _check_empty(folder, foreign)
    elif resume:
        _check_same(folder, listing, experiment.run.name)
    elif overwrite:
        _check_deletable(folder, foreign, experiment)
    else:
        raise RunError(
            f"{folder} holds an earlier run, '{listing.name}'; continue it with --resume, delete it"
            f" with --overwrite, or {ELSEWHERE}"
        )


def _check_place(folder: Path) -> None:
    """Raise RunError where there can be no folder of ours."""
    if "\0" in str(folder):
        raise RunError(f"run.dir {str(folder)!r} holds a NUL character, which no path may")
    if folder.is_symlink() and not folder.exists():
        raise RunError(f"run.dir {folder} is a link to {os.readlink(folder)}, which is not there")
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    place.stat()  # a forbidden one says so
    if not place.is_dir():
        below = "" if place == folder else f" is below {place}, which"
        raise RunError(f"run.dir {folder}{below} is a file, not a folder; {ELSEWHERE}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(
            f"run.dir {folder} cannot be written: this user may not write in {place}; {ELSEWHERE}"
        )


def _check_empty(folder: Path, foreign: list[str]) -> None:
    """Raise RunError where a folder without a run holds anything."""
    if foreign:
        raise RunError(
            f"{folder} holds no run, but {some_of(foreign)}; a run has a folder of its own, so"
            f" nothing was touched: {ELSEWHERE}"
        )


def _check_same(folder: Path, listing: Listing, name: str) -> None:
    """Raise RunError where another run would be trained into a run's folder."""
    if listing.name != name:
        raise RunError(
            f"{folder} holds the run '{listing.name}', which cannot be continued as run.name"
            f" '{name}'; give --set run.name={listing.name}, or {ELSEWHERE}"
        )


def _check_deletable(folder: Path, foreign: list[str], experiment: Experiment) -> None:
    """Raise RunError where a run's folder holds anything that it did not write."""
    for key, path in _inputs(experiment):
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise RunError(
                f"{folder} holds {key} ({path}), so --overwrite leaves it alone; {ELSEWHERE}"
            )
    if foreign:
        raise RunError(
            f"{folder} holds {some_of(foreign)}, which no run wrote, so --overwrite leaves it alone"
            f" and nothing was touched; move that elsewhere, or {ELSEWHERE}"
        )


def _inputs(experiment: Experiment) -> list[tuple[str, str]]:
    """Return what names them in the config, and the files and folders that a run reads."""
    inputs = [("data.path", path) for path in experiment.data.files]
    inputs += [("cache.path", experiment.cache.path)]
    for column in experiment.data.strings:
        if column.encoder is None:
            inputs.append(("encoder.source", experiment.encoder.source))
        else:
            inputs.append((f"the encoder of '{column.name}'", column.encoder.source))
    return [(key, path) for key, path in inputs if os.path.lexists(path)]
