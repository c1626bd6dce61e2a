"""What a run's folder says without torch, so that a command refuses at once what is not there."""

from pathlib import Path
from typing import Any, Literal

from embedcache.errors import RunError
from fusionnet.runfolder.listing import LIST, Listing, read_listing
from fusionnet.yamlfile import read_yaml

Moment = Literal["best", "final", "last"]
# of a folder that `publish` wrote, which holds no .pt file
MODEL, SETTINGS, STRINGS = "model.safetensors", "config.json", "strings.json"


def read_config(folder: Path) -> tuple[Listing, dict[str, Any]]:
    """Return whose folder it is, and the mapping of the run's YAML file as it is now."""
    listing = read_listing(folder)
    if listing is None:
        raise RunError(
            f"{folder} is not a run folder: it has no {LIST}, which training writes and which goes"
            " wherever a run is copied to; train first with: fusionnet train --config ..."
        )
    file = folder / f"{listing.name}_config.yaml"
    if not file.is_file():
        raise RunError(f"{folder} lacks {file.name}, the config of its run; put it back")
    written = read_yaml(file)
    if not isinstance(written, dict):
        raise RunError(f"{file} must hold a mapping, as training wrote it")
    return listing, written


def tables_of(folder: Path) -> list[Path]:
    """Return the table's files that a run's YAML file names; those that it does not, are none."""
    data = read_config(folder)[1].get("data")
    path = data.get("path") if isinstance(data, dict) else None
    named = path if isinstance(path, list) else [path]
    return [Path(each) for each in named if isinstance(each, str)]


def is_portable(folder: Path) -> bool:
    """Return whether a folder holds a model as safetensors and JSON, not as checkpoints."""
    return any((folder / name).is_file() for name in (MODEL, SETTINGS))


def moment_path(folder: Path, name: str, moment: Moment) -> Path:
    """Return where a run's checkpoint of a moment lies, or its model, be it there or not.

    Raises RunError for a moment that a portable folder does not have.
    """
    if not is_portable(folder):
        return folder / f"{name}_{moment}.pt"
    if moment != "best":
        raise RunError(
            f"{folder} was exported from the best epoch of a run, and holds no {moment} one; take"
            " the best, or the run's own folder"
        )
    return folder / MODEL


def find_checkpoint(folder: Path, moment: Moment) -> Path:
    """Return a run's checkpoint of a moment, unread; raises RunError where there is none."""
    path = moment_path(folder, read_config(folder)[0].name, moment)
    if not path.is_file():
        raise RunError(
            f"there is no checkpoint {path}: its run has not come that far. Wait for the training,"
            " or go on with: fusionnet train --config ... --resume"
        )
    return path
