"""A run as it is kept elsewhere: in a folder, on the Hugging Face hub, in a pickle."""

import shutil
from pathlib import Path
from typing import NamedTuple

from embedcache.errors import OutputError
from embedcache.files import atomic_write
from fusionnet.blend.saved import blend_path
from fusionnet.calibration.saved import calibration_path
from fusionnet.runfolder.listing import LIST, read_listing
from fusionnet.trained.folder import MODEL, SETTINGS, STRINGS, Moment


def copy_run(run: Path, target: Path) -> None:
    """Copy the files of a run to a new folder; raises OutputError where there is one already."""
    listing = read_listing(run)
    assert listing is not None, "it was loaded from there"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} is there already; save into a new folder")
    with atomic_write(target) as partial:
        partial.mkdir()
        for file in sorted(listing.files | {LIST}):
            if (run / file).is_file():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / file, partial / file)


class RunBytes(NamedTuple):
    """What a run is loaded from: its files by name."""

    moment: Moment
    files: dict[str, bytes]


def run_bytes(run: Path, moment: Moment) -> RunBytes:
    """Return what a run needs to predict: list, config, proof, a checkpoint, trees, calibration."""
    listing = read_listing(run)
    assert listing is not None, "it was loaded from there"
    wanted = (LIST, *(f"{listing.name}_{part}" for part in ("config.yaml", "proof.json")))
    beside = [each(run, listing.name).name for each in (blend_path, calibration_path)]
    names = [*wanted, f"{listing.name}_{moment}.pt", MODEL, SETTINGS, STRINGS, *beside]
    return RunBytes(
        moment, {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    )


def write_run(content: RunBytes, folder: Path) -> tuple[Path, Moment]:
    """Write a run's files to a new folder; return it and the checkpoint's moment."""
    folder.mkdir(parents=True)
    for name, what in content.files.items():
        (folder / name).write_bytes(what)
    return folder, content.moment
