"""Weights of a trained run, loaded into a freshly built module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from fusionnet.train.content import check_weights

_DRAWING = RLock()


@contextmanager
def own_random_state() -> Iterator[None]:
    """Open a context whose draws do not move the caller's random numbers.

    The draws are those of initial weights, which are overwritten. One thread is inside at a time:
    what it puts back is the whole process's.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _DRAWING, torch.random.fork_rng(devices=devices):
        yield


def load_weights(module: torch.nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Load all trainable parameters.

    Raises RunError unless `state` has exactly one of the right shape for each.
    """
    own = check_weights(module, state, origin)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
