"""A run as it is kept elsewhere: in a folder, on the Hugging Face hub, in a pickle."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is a library's
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from embedcache.errors import OutputError, RunError
from embedcache.files import atomic_write
from embedcache.values import expanded_path
from fusionnet.blend.saved import blend_path
from fusionnet.calibration.saved import calibration_path
from fusionnet.runfolder.listing import LIST, read_listing
from fusionnet.trained.folder import Moment

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def run_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the run folder that a path or a hub id names; a hub's model is fetched to its cache.

    A path may be that of the run, or of the folder that a model was fitted in. Raises RunError
    where there is neither, or the hub cannot be asked and its cache does not hold the model.
    """
    try:
        folder = Path(expanded_path(str(name)))
    except ValueError as error:
        raise RunError(f"the folder {str(name)[:200]!r} {error}") from None
    for place in (folder, folder / "run"):
        if (place / LIST).is_file():
            return place
    if folder.exists():
        raise RunError(
            f"{folder} holds no trained model: neither it nor {folder / 'run'} has {LIST}, which"
            " training writes"
        )
    if isinstance(name, Path) or not _HUB_ID.fullmatch(str(name)):
        raise RunError(f"there is no folder {folder}")
    return _from_hub(str(name), revision)


def _from_hub(name: str, revision: str | None) -> Path:
    """Return the folder of a hub's model in the hub's cache."""
    try:
        folder = Path(snapshot_download(name, revision=revision))
    except (RepositoryNotFoundError, HFValidationError):
        raise RunError(f"there is no folder {name}, nor a model of this name on the hub") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, OSError) as error:
        off = os.environ.get("HF_HUB_OFFLINE") == "1"
        said = "HF_HUB_OFFLINE is set" if off else " ".join(str(error).split())
        raise RunError(
            f"there is no folder {name}, and the hub cannot be asked for a model of this name"
            f" ({said:.200}), nor does its cache hold it; fetch it where there is a network, with:"
            f" hf download {name}"
        ) from None
    if not (folder / LIST).is_file():
        raise RunError(
            f"the hub's {name} is no model that FusionModel.save wrote: it has no {LIST}"
        )
    return folder


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
    names = [*wanted, f"{listing.name}_{moment}.pt", *beside]
    return RunBytes(
        moment, {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    )


def write_run(content: RunBytes, folder: Path) -> tuple[Path, Moment]:
    """Write a run's files to a new folder; return it and the checkpoint's moment."""
    folder.mkdir(parents=True)
    for name, what in content.files.items():
        (folder / name).write_bytes(what)
    return folder, content.moment
