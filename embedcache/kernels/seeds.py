"""Seeds of dropout's masks, drawn by torch's generator of the device: one by one, or a step's all
at once.

Each masked kernel takes a seed of its own, and to draw one is a launch that costs as much as a
small kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class _Supply(NamedTuple):
    """Seeds drawn at the first request: where no kernel asks, the generator stays as it was."""

    device: torch.device
    seeds: Iterator[Int[Tensor, " 1"]]


_supply: _Supply | None = None  # of forward passes; backward passes draw no seeds


def draw_seed(device: torch.device) -> Int[Tensor, " 1"]:
    """Return a seed of 62 random bits."""
    supply = None if torch.compiler.is_compiling() else _supply
    if supply is not None and supply.device == device:
        seed = next(supply.seeds, None)
        if seed is not None:
            return seed
    return torch.randint(2**62, (1,), device=device)


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what a step on this device draws from, to the bits that torch.manual_seed would.

    That also notes for every kind of device that is not in use who asked, with a traceback, whose
    cost grows with the depth of the stack.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextmanager
def seeds_drawn_at_once(num: int, device: torch.device) -> Iterator[None]:
    """Let `draw_seed` on this device hand out seeds that one call of the generator draws.

    After `num` of them it draws each by itself again. They follow the generator's state at the
    first request, so whoever reseeds or replays the generator inside enters this anew, with 0 to
    have every seed drawn by itself.
    """
    global _supply
    outer = _supply
    # an empty tensor's, because "cuda" names the device that is current
    _supply = _Supply(torch.empty(0, device=device).device, _draw(num, device))
    try:
        yield
    finally:
        _supply = outer


def _draw(num: int, device: torch.device) -> Iterator[Int[Tensor, " 1"]]:
    if num:
        # two a row: kernels are specialised to pointers that are multiples of 16 bytes
        for row in torch.randint(2**62, (num, 2), device=device):
            yield row[:1]
