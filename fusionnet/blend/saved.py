"""A blend as a file: the trees' arrays in safetensors, the rest as JSON in its header.

Nothing in it is executed. It names the run and the epoch that it was made for, and has a checksum
of its arrays, which safetensors has not.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from embedcache.errors import RunError
from embedcache.schema import Config
from fusionnet.blend.blend import Blend, TaskBlend
from fusionnet.blend.columns import TreeColumns
from fusionnet.blend.forest import Forest
from fusionnet.config.tasks import Task

_KEY = "blend"  # of the header


class SavedTask(Config):
    """One target."""

    share: Annotated[float, Field(ge=0, le=1)]
    num_outputs: Annotated[int, Field(ge=1)]


class Header(Config):
    """What is known of the arrays."""

    run_id: str
    epoch: int
    columns: TreeColumns
    tasks: dict[str, SavedTask]
    sha256: str


def blend_path(folder: Path, name: str) -> Path:
    """Return where a run keeps its blend."""
    return folder / f"{name}_blend.safetensors"


def blend_bytes(blend: Blend, run_id: str, epoch: int) -> bytes:
    """Return a blend as a file's content."""
    tensors = {
        f"{name}.{key}": value.contiguous().cpu()
        for name, each in blend.tasks.items()
        for key, value in each.forest.tensors().items()
    }
    header = Header(
        run_id=run_id,
        epoch=epoch,
        columns=blend.columns,
        tasks={
            name: SavedTask(share=each.share, num_outputs=each.forest.num_outputs)
            for name, each in blend.tasks.items()
        },
        sha256=digest_of(tensors),
    )
    return save(tensors, metadata={_KEY: header.model_dump_json()})


def read_blend(path: Path, run_id: str, epoch: int, tasks: tuple[Task, ...]) -> Blend:
    """Return the blend of a run's epoch; raises RunError where the file is anything else."""
    if not path.is_file():
        raise RunError(
            f"there is no {path}: the boosted trees that belong to this run's predictions are"
            " missing. Put the file back, or grow them again with: fusionnet train --config ..."
            " --resume"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.model_validate_json((file.metadata() or {}).get(_KEY, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValidationError, OSError) as error:
        why = str(error).splitlines()[0]
        raise RunError(f"{path} is not the blend of a run ({why:.200}); put it back") from None
    if (header.run_id, header.epoch) != (run_id, epoch):
        raise RunError(
            f"{path} was made for epoch {header.epoch} of run {header.run_id}, this is epoch"
            f" {epoch} of run {run_id}: the training goes on, or the file is another run's. End the"
            " training (--resume), or put the run's own file back"
        )
    if header.sha256 != digest_of(tensors):
        raise RunError(f"{path} is damaged: its bytes changed since it was written; restore it")
    known = {task.name: task.num_classes for task in tasks}
    found = {name: each.num_outputs for name, each in header.tasks.items()}
    if not found.items() <= known.items():
        raise RunError(f"{path} is of the tasks {found}, the run's are {known}")
    try:
        blended = {
            name: TaskBlend(
                each.share,
                Forest.of_tensors(_of(tensors, name), each.num_outputs, header.columns.num_columns),
            )
            for name, each in header.tasks.items()
        }
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    return Blend(header.columns, blended)


def _of(tensors: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return one task's arrays."""
    start = f"{task}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of arrays with their names, kinds and sizes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
