"""Dropout of GELU, element by element, at the cost of reading and writing each element once.

Eager PyTorch reads and writes twice, and writes and reads the mask. Here backward reads x and the
gradient and draws the mask again. Elements are taken in the order of memory, in lines of a fixed
length that are the rows of dropout's mask, so that loads are as wide for every width. Like
`add_norm` it is no `custom_op`: torch.compile gets the plain version, which it fuses.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.dropout_mask import INTERPRETED, drop_threshold, keep
from fusionnet.kernels.reference import GELU_LINE

_LINES = 2  # of a program: 16 elements a thread


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _kernel(
    x_ptr,  # [lines, LINE], the last line not full
    of_y_ptr,  # the same
    seed_ptr,  # [1]
    out_ptr,  # the same as x: y, or the gradient of x
    num_elements,
    threshold,
    scale,
    BACKWARD: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
):
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    offset = lines.to(tl.int64)[:, None] * LINE + tl.arange(0, LINE)[None, :]
    inside = offset < num_elements
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)  # the normal distribution's
    if BACKWARD:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        of_y = tl.load(of_y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        value = of_y * (below + x * density)
    else:
        value = x * below
    # not in the loads' masks, which would split them into single elements
    kept = keep(seed_ptr, lines, 0, threshold, LINES, LINE)
    value = tl.where(kept, value * scale, 0.0)
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


def gelu_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return dropout of GELU of x with probability p; the rest is scaled by 1 / (1 - p)."""
    return _GeluDropout.apply(x, p, seed)


class _GeluDropout(torch.autograd.Function):
    """What backward needs is x and the seed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, seed)
        ctx.p = p
        return _run(x, None, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, seed = ctx.saved_tensors
        return _run(x, gradient.contiguous(), ctx.p, seed), None, None


def _run(x: Tensor, of_y: Tensor | None, p: float, seed: Tensor) -> Tensor:
    """Return dropout of GELU of x, or where its gradient is given, that of x."""
    out = torch.empty_like(x, dtype=torch.float32 if INTERPRETED else x.dtype)
    if x.numel():
        _kernel[(triton.cdiv(x.numel(), _LINES * GELU_LINE),)](
            x,
            x if of_y is None else of_y,
            seed,
            out,
            x.numel(),
            drop_threshold(p),
            1 / (1 - p),
            of_y is not None,
            _LINES,
            GELU_LINE,
            num_warps=4,
        )
    return out.to(x.dtype)
