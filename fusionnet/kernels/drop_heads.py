"""Dropout of whole attention heads per row: attention dropout over a single key.

One random word tells of a whole head, so there is next to nothing to draw again: backward is the
same kernel on the gradient. Like `gelu_dropout` it is no `custom_op`.

Axes: B rows, D their width, H heads.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.dropout_mask import INTERPRETED, drop_threshold, keep

_BLOCK = 2048  # elements of a program: 16 a thread


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _kernel(
    x_ptr,  # [B, D]
    seed_ptr,  # [1]
    out_ptr,  # [B, D]
    num_rows,
    threshold,
    scale,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,  # known, so that loads are as wide as it allows
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    heads, columns = tl.arange(0, BLOCK_H)[None, :, None], tl.arange(0, BLOCK_W)[None, None, :]
    long_rows = rows.to(tl.int64)[:, None, None]
    offset = (long_rows * NUM_HEADS + heads) * HEAD_WIDTH + columns
    inside = (rows < num_rows)[:, None, None] & (heads < NUM_HEADS) & (columns < HEAD_WIDTH)
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    # not in the load's mask, which would split it into single elements
    kept = keep(seed_ptr, rows, 0, threshold, BLOCK_B, BLOCK_H)
    value = tl.where(kept[:, :, None], x * scale, 0.0)
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


def drop_heads(x: Tensor, num_heads: int, p: float, seed: Tensor) -> Tensor:
    """Return x [B, D] with heads dropped with probability p; the rest is scaled by 1 / (1 - p)."""
    return _DropHeads.apply(x, num_heads, p, seed)


class _DropHeads(torch.autograd.Function):
    """What backward needs is the seed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, p: float, seed: Tensor) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.num_heads, ctx.p = num_heads, p
        return _run(x.contiguous(), num_heads, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (seed,) = ctx.saved_tensors
        return _run(gradient.contiguous(), ctx.num_heads, ctx.p, seed), None, None, None


def _run(x: Tensor, num_heads: int, p: float, seed: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.float32 if INTERPRETED else x.dtype)
    if x.numel():
        head_width = x.shape[1] // num_heads
        block_h = max(4, triton.next_power_of_2(num_heads))  # dropout's mask comes in fours
        block_w = triton.next_power_of_2(head_width)
        block_b = max(1, _BLOCK // (block_h * block_w))
        _kernel[(triton.cdiv(len(x), block_b),)](
            *(x, seed, out, len(x), drop_threshold(p), 1 / (1 - p)),
            *(num_heads, head_width, block_b, block_h, block_w),
            num_warps=4,
        )
    return out.to(x.dtype)
