"""Weights of a trained run, loaded into a freshly built module."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from fusionnet.train.content import check_weights


def own_random_state() -> AbstractContextManager[None]:
    """Return a context whose draws do not move the caller's random numbers.

    The draws are those of initial weights, which are overwritten.
    """
    return torch.random.fork_rng(
        devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    )


def load_weights(module: torch.nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Load all trainable parameters.

    Raises RunError unless `state` has exactly one of the right shape for each.
    """
    own = check_weights(module, state, origin)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
