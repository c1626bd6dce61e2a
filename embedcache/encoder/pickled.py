"""Pickled weights as safetensors, in a process of its own that takes tensors and nothing else.

A pickle is a program. torch's `weights_only` runs those alone that make tensors, and what it gets
wrong ends here in a process that has no other work. This file imports little, since the process
starts anew.
"""

import re
import signal
import struct
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor

from embedcache.errors import EncoderError

# what damaged bytes lead to in torch's unpickler
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def write_safetensors(files: list[Path], target: Path) -> None:
    """Write the tensors of all pickle files to one file.

    Raises EncoderError where a file holds anything but named tensors.
    """
    context = get_context("spawn")  # a fork would hold what this process has in memory
    result, sender = context.Pipe(duplex=False)
    process = context.Process(target=_convert, args=(files, target, sender))
    process.start()
    sender.close()
    try:
        problem = result.recv()
    except EOFError:  # it is gone without a word
        problem = None
    process.join()
    if problem is None:
        code = process.exitcode or 0
        why = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        problem = f"the process that read {files[0]} ended {why}; is there enough memory?"
    if problem:
        raise EncoderError(problem)


def _convert(files: list[Path], target: Path, sender: Connection) -> None:
    """Write the safetensors file and send "", or send what is wrong."""
    try:
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= tensors_of(file)
        save_file(tensors, target, metadata={"format": "pt"})
    except EncoderError as error:
        sender.send(str(error))
    except OSError as error:
        sender.send(f"{target} cannot be written: {error}")
    else:
        sender.send("")


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle file, each with memory of its own.

    Raises EncoderError for a file that holds, or asks for, anything else.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # whose text advises to run the file
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {name[1]}" if name else "it is damaged, or no pickle"
        raise EncoderError(
            f"{file} is no pickle of tensors alone: {what}; it was not converted, and nothing of it"
            " was run"
        ) from None
    except DAMAGED as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise EncoderError(f"{file} is damaged: {why:.100}; fetch it again") from None
    if not isinstance(found, dict) or not found:
        raise EncoderError(f"{file} holds {type(found).__name__}, expected tensors by their names")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise EncoderError(
                f"{file} holds {type(value).__name__} under {name!r:.80}, expected a tensor"
            )
    return {name: value.detach().clone().contiguous() for name, value in found.items()}
