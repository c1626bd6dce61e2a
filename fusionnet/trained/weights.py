"""Weights of a trained run, loaded into a freshly built module."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from embedcache.errors import RunError


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
    own = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not part of this model" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise RunError(
            f"the weights in {origin} do not fit the run's config: {'; '.join(wrong[:4])}"
            + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
