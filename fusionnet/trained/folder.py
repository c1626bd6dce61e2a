"""What a run's folder says without torch, so that a command refuses at once what is not there."""

from pathlib import Path
from typing import Any, Literal

from embedcache.errors import RunError
from fusionnet.yamlfile import read_yaml

Moment = Literal["best", "final", "last"]


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a run's name and its YAML file's mapping as it is now."""
    files = sorted(folder.glob("*_config.yaml"))
    if not files:
        raise RunError(
            f"{folder} is not a run folder: it has no *_config.yaml; train first with:"
            " fusionnet train --config ..."
        )
    if len(files) > 1:
        raise RunError(
            f"{folder} holds more than one run: {', '.join(file.name for file in files)}; keep one"
            " of them in a folder"
        )
    written = read_yaml(files[0])
    if not isinstance(written, dict):
        raise RunError(f"{files[0]} must hold a mapping, as training wrote it")
    return files[0].name.removesuffix("_config.yaml"), written


def find_checkpoint(folder: Path, moment: Moment) -> Path:
    """Return a run's checkpoint of a moment, unread; raises RunError where there is none."""
    path = folder / f"{read_config(folder)[0]}_{moment}.pt"
    if not path.is_file():
        raise RunError(
            f"there is no checkpoint {path}; train first with: fusionnet train --config ..."
        )
    return path


def check_unused(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise RunError(
            f"{folder} holds an earlier run; continue it with --resume, delete it with --overwrite,"
            " or choose another with --set run.dir=..."
        )
