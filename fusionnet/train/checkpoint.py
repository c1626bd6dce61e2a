"""Checkpoints: plain dicts of tensors, strings and numbers, of which no code is executed.

They are written atomically and loaded with `weights_only=True`. One file per moment holds trained
weights, the loss's log-variances, metrics, config, and what turns raw units into predictions
(columns, scaling, tasks, the trained vectors of the known strings): each can be evaluated and
shared. `last` and `step` also hold Adam's two moments, from which training goes on; `best` and
`final` do not, which are a third as large for it. The frozen base encoder is not in it; it is named
by source and digest.
"""

import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from embedcache.errors import RunError
from embedcache.files import atomic_write

FORMAT_VERSION = 8
# What zipfile raises on bytes that changed: in the directory, in a local header (struct, EOF), in a
# flag (compressed: zlib, unknown method: NotImplemented,
# encrypted: Runtime), in a name or offset (Value).
_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any point leaves the old file or the new one."""
    # a stream: for a path torch.save would write its name into the file
    with atomic_write(path) as partial, partial.open("wb") as stream:
        torch.save({"format_version": FORMAT_VERSION, **content}, stream)


def without_moments(content: dict[str, Any]) -> dict[str, Any]:
    """Return what predicting needs of a checkpoint's content, which is all but Adam's state."""
    return {**content, "optimizer_state_dict": {}}


def link_checkpoint(source: Path, target: Path) -> None:
    """Publish the present content of `source` under a second name, atomically.

    It is a link where the file system has them, else a copy.
    """
    with atomic_write(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content; executes no code from the file.

    Raises RunError where it is missing, of another version, or damaged: torch writes a checksum of
    every tensor, but does not read it.
    """
    if not path.is_file():
        raise RunError(
            f"there is no checkpoint {path}: its run has not come that far. Wait for the training,"
            " or go on with: fusionnet train --config ... --resume"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _DAMAGE as error:
        damaged = str(error)
    if damaged is not None:
        raise RunError(
            f"{path} is not a readable checkpoint: its bytes changed since it was written"
            f" ({damaged}); restore it, or train again"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise RunError(f"{path} is not a readable checkpoint: {error}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise RunError(
            f"{path} is not a checkpoint of format {FORMAT_VERSION}; it was written by another"
            " version"
        )
    return content


def check_run_id(path: Path, content: dict[str, Any], run_id: str) -> None:
    """Raise RunError where a checkpoint is not of the run whose folder it lies in."""
    own = content.get("run_id")
    if own != run_id:
        raise RunError(
            f"{path} is a checkpoint of another run (id {own}) than the one that {path.parent}"
            f" lists (id {run_id}): it was copied there, or the run that it belongs to is being"
            " replaced. Put the run's own file back, or use the whole folder that this one is from"
        )
