"""Dropout that does not dominate a training step on a CPU.

torch's CPU dropout draws one Bernoulli number per element on one thread: 9 ns each, a fifth of a
whole step here. This one draws 64 random bits at a time and takes every 16 as a uniform number, so
the probability is exact to 1/65536, and the mask is applied to the bits of the numbers. The
distribution is dropout's; the stream of random numbers is not torch's: each mask has a stream of
its own (NumPy's SFC64, twice as fast as torch's generator), seeded by torch's default generator,
whose state is all that a checkpoint needs. On other devices it is torch's own, and under
torch.compile, which fuses it with its neighbours.

Measured on 2 cores for 1024 x 2048 elements, forward and backward, in turns: bf16 3.7 ms against
20.1 ms, fp32 4.4 ms against 15.2 ms.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_STEPS = 1 << 16
_INTEGER_OF = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def dropout(x: Float[Tensor, "*shape"], p: float, training: bool) -> Float[Tensor, "*shape"]:
    """Return x with each element zeroed with probability p and the others scaled by 1 / (1 - p).

    Where not training it is x itself.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in _INTEGER_OF or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return _BitDropout.apply(x, p)


class Dropout(nn.Dropout):
    """`nn.Dropout`, computed by `dropout`."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return x with elements dropped in training."""
        return dropout(x, self.p, self.training)


class _BitDropout(torch.autograd.Function):
    """Dropout whose mask is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
        keep = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return masked(x, keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], None]:
        (keep,) = ctx.saved_tensors
        return masked(gradient, keep).mul_(ctx.scale), None


def keep_mask(
    shape: torch.Size, p: float, device: torch.device | str = "cpu"
) -> Int16[Tensor, "*shape"]:
    """Return 1 with probability 1 - p, else 0, by the device's default generator."""
    num = shape.numel()
    bits = _random_words(num // 4 + 1, torch.device(device)).view(torch.int16)[:num].view(shape)
    last = round((1 - p) * _STEPS) - _STEPS // 2 - 1  # kept, of bits read as a signed number
    return bits.le_(max(last, -_STEPS // 2))


def masked(x: Float[Tensor, "*shape"], keep: Int16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a copy of x, not scaled, that is zero where `keep` is 0, whatever x is there."""
    return (x.contiguous().view(_INTEGER_OF[x.dtype]) * keep).view(x.dtype)


def _random_words(num: int, device: torch.device) -> Int64[Tensor, " num"]:
    """Return numbers of 64 random bits."""
    if device.type != "cpu":
        # None: the whole range of int64
        return torch.empty(num, dtype=torch.int64, device=device).random_(-(2**63), None)
    seed = int(torch.randint(2**63 - 1, ()))
    return torch.from_numpy(np.random.SFC64(seed).random_raw(num).view(np.int64))
