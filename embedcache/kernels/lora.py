"""LoRA beside frozen projections of one input: one kernel forward and two backward, however many
projections lie side by side, and their dropout inside.

The frozen product and its input's gradient are one matrix product each; the kernels add what the
adapters do. Forward draws the dropout masks by Philox, one of its own for each projection, and
keeps a byte per element: to draw them again would cost each backward kernel more than to read them.
What waits for the same thing shares a kernel, the longer programs first: the gradients of B and of
x A^T, then those of A and of the input. Sums over tokens are one program's loop, so results repeat
bitwise.

Axes: K tokens; NUM projections lie side by side; r is LoRA's rank.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from embedcache.kernels.dropout_mask import drop_threshold, readable
from embedcache.kernels.lora_kernels import (
    backward_input_kernel,
    backward_low_kernel,
    forward_kernel,
)
from embedcache.kernels.seeds import draw_seed

MOST_PROJECTIONS = 3  # whose matrices a kernel is given by a pointer each
LARGEST_RANK = 64


def adapted(
    x: Tensor, weight: Tensor, bias: Tensor, scale: float, p: float, *matrices: Tensor
) -> Tensor:
    """Return x W^T + b with s B_i A_i drop_i(x) added to the i-th of the projections in W.

    x [K, width_in] is cast to the type of W [NUM width_out, width_in]; `matrices` are A_0 [r,
    width_in], B_0 [width_out, r], A_1 and so on, of one type. Each projection's mask is drawn with
    probability p by a seed from torch's generator of the device.
    """
    return _Adapted.apply(x, weight, bias, scale, p, *matrices)


class _Adapted(torch.autograd.Function):
    """Frozen projections with LoRA; what the backward pass needs is x, x A^T and the masks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: float,
        p: float,
        *matrices: Tensor,
    ) -> Tensor:
        cast = x.to(weight.dtype).contiguous()
        y = F.linear(cast, weight, bias)
        given, out = readable(cast), readable(y)
        num, (rank, width_in) = len(matrices) // 2, matrices[0].shape
        width_out = len(matrices[1])
        low = given.new_empty(num, len(x), rank)
        masks = seed = None
        if p:
            seed = draw_seed(x.device)
            masks = torch.empty(num, *x.shape, dtype=torch.int8, device=x.device)
        ctx.factor = scale / (1 - p)
        block = 16  # tokens: more programs, each with less to draw
        forward_kernel[(triton.cdiv(len(x), block), num)](
            given,
            *_three(matrices[::2]),
            *_three(matrices[1::2]),
            low if seed is None else seed,
            low if masks is None else masks,
            low,
            out,
            len(x),
            drop_threshold(p),
            ctx.factor,
            NUM=num,
            WIDTH_IN=width_in,
            WIDTH_OUT=width_out,
            RANK=rank,
            DROPS=bool(p),
            BLOCK_K=block,
            BLOCK_C=_block(max(width_in, width_out), 128),
            BLOCK_R=_block(rank, LARGEST_RANK),
        )
        ctx.save_for_backward(cast, weight, low, masks, *matrices)
        ctx.input_dtype = x.dtype
        return out.to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cast, weight, low, masks, *matrices = ctx.saved_tensors
        num, (rank, width_in) = len(matrices) // 2, matrices[0].shape
        width_out = len(matrices[1])
        num_tokens = len(cast)
        sizes = {"NUM": num, "RANK": rank, "BLOCK_R": _block(rank, LARGEST_RANK)}
        of_low = torch.empty_like(low)
        of_a = matrices[0].new_empty(num, rank, width_in)
        of_b = matrices[1].new_empty(num, width_out, rank)
        blocks = {
            "BLOCK_T": _block(num_tokens, 128),
            "BLOCK_W": 32,
            "BLOCK_K": 16,
            "BLOCK_C": _block(width_out, 128),
        }
        num_blocks = triton.cdiv(width_out, 32) + triton.cdiv(num_tokens, 16)
        of_b_given = (readable(gradient), *_three(matrices[1::2]), low, of_low, of_b)
        backward_low_kernel[(num_blocks, num)](
            *of_b_given, num_tokens, ctx.factor, WIDTH_OUT=width_out, **sizes, **blocks
        )
        of_input = None
        of_frozen = of_low  # nobody reads it
        num_blocks = num * triton.cdiv(width_in, 32)
        blocks = {**blocks, "BLOCK_K": 32, "BLOCK_C": _block(width_in, 128)}
        if ctx.needs_input_grad[0]:
            of_frozen = readable(gradient @ weight)
            same = of_frozen.dtype == ctx.input_dtype
            of_input = of_frozen if same else torch.empty_like(of_frozen, dtype=ctx.input_dtype)
            num_blocks += triton.cdiv(num_tokens, 32) * triton.cdiv(width_in, blocks["BLOCK_C"])
        backward_input_kernel[(num_blocks,)](
            readable(cast),
            of_low if masks is None else masks,
            of_low,
            *_three(matrices[::2]),
            of_a,
            of_frozen,
            of_frozen if of_input is None else of_input,
            num_tokens,
            WIDTH_IN=width_in,
            DROPS=masks is not None,
            **sizes,
            **blocks,
        )
        of_matrices = [each for pair in zip(of_a, of_b, strict=True) for each in pair]
        return of_input, None, None, None, None, *of_matrices


def _three(matrices: Any) -> list[Tensor]:
    """Return as many matrices as the kernels have pointers for, the last one repeated."""
    return [matrices[min(place, len(matrices) - 1)] for place in range(MOST_PROJECTIONS)]


def _block(size: int, largest: int) -> int:
    """Return the power of two that takes the size in; tl.dot takes 16 at least."""
    return max(16, min(largest, triton.next_power_of_2(size)))
