"""LayerNorm(residual + dropout(x)) in one pass over its rows, forward and backward.

PyTorch takes an operation each, in fp32 under autocast and bound by memory, for dropout, sum, norm,
the cast for the next product and, in backward, the sum of two gradients. Here the sum is never
written: backward reads its terms again. The result comes as the state that goes around the next
block, and in the dtype of x as what goes into it: one storage where the dtypes agree, yet two
tensors to autograd, so that their gradients are added where they are read.

Statistics are fp32. Gradients of weight and bias are sums over slices of the rows, as many as K
tells, and a sum over the slices: bitwise repeatable. Frozen ones cost nothing.

A `custom_op` may not return aliases, so this is an autograd function; torch.compile gets the plain
version, which it fuses.

Axes: K rows, D their width.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.dropout_mask import INTERPRETED, drop_threshold, keep
from embedcache.kernels.sum_slices import sum_slices

_BLOCK = 2048  # elements of a program at a time: 16 a thread
_MAX_SLICES = 512  # of K: four programs for each of an H100's 132 multiprocessors


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _forward_kernel(
    x_ptr,  # [K, D]
    residual_ptr,  # [K, D], rows apart by STRIDE
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    seed_ptr,  # [1]
    state_ptr,  # [K, D]
    operand_ptr,  # [K, D]
    mean_ptr,  # [K] fp32
    rstd_ptr,  # [K] fp32
    num_rows,
    inverse_width,
    eps,
    threshold,
    scale,
    MASKED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PAIR: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,  # known, so that loads are as wide as it allows
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    offset = long_rows * WIDTH + columns[None, :]
    total = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if MASKED:  # not in the load's mask, which would split it into single elements
        kept = keep(seed_ptr, rows, 0, threshold, BLOCK_B, BLOCK_D)
        total = tl.where(kept, total * scale, 0.0)
    if HAS_RESIDUAL:
        source = residual_ptr + long_rows * STRIDE + columns[None, :]
        total += tl.load(source, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, 1) * inverse_width
    centred = tl.where(inside, total - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) * inverse_width + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(state_ptr + offset, y.to(state_ptr.dtype.element_ty), mask=inside)
    if PAIR:
        tl.store(operand_ptr + offset, y.to(operand_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + rows, mean, mask=rows < num_rows)
    tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)


@triton.jit
@no_type_check
def _backward_kernel(
    of_state_ptr,  # [K, D]: what comes from above
    of_operand_ptr,  # [K, D]
    x_ptr,  # [K, D]
    residual_ptr,  # [K, D], rows apart by STRIDE
    weight_ptr,  # [D]
    mean_ptr,  # [K]
    rstd_ptr,  # [K]
    seed_ptr,  # [1]
    of_x_ptr,  # [K, D]: what goes down
    of_residual_ptr,  # [K, D]
    partial_ptr,  # [slices, 2, D] fp32: of weight, of bias
    num_rows,
    rows_per_slice,
    inverse_width,
    threshold,
    scale,
    MASKED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_OPERAND: tl.constexpr,
    TO_X: tl.constexpr,
    TO_RESIDUAL: tl.constexpr,
    TO_WEIGHT: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,  # known, so that loads are as wide as it allows
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    of_bias = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, rows_per_slice, BLOCK_B):
        rows = tl.program_id(0) * rows_per_slice + start + tl.arange(0, BLOCK_B)
        inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
        long_rows = rows.to(tl.int64)[:, None]
        offset = long_rows * WIDTH + columns[None, :]
        total = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        if HAS_STATE:
            gradient += tl.load(of_state_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        if HAS_OPERAND:
            gradient += tl.load(of_operand_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            kept = keep(seed_ptr, rows, 0, threshold, BLOCK_B, BLOCK_D)
            total = tl.where(kept, total * scale, 0.0)
        if HAS_RESIDUAL:
            source = residual_ptr + long_rows * STRIDE + columns[None, :]
            total += tl.load(source, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=rows < num_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)
        normed = tl.where(inside, (total - mean[:, None]) * rstd[:, None], 0.0)
        if TO_WEIGHT:
            of_weight += gradient * normed
            of_bias += gradient
        gradient *= weight[None, :]
        along = tl.sum(gradient * normed, 1) * inverse_width
        level = tl.sum(gradient, 1) * inverse_width
        of_sum = (gradient - level[:, None] - normed * along[:, None]) * rstd[:, None]
        if TO_RESIDUAL:
            of_residual = of_sum.to(of_residual_ptr.dtype.element_ty)
            tl.store(of_residual_ptr + offset, of_residual, mask=inside)
        if TO_X:
            if MASKED:
                of_sum = tl.where(kept, of_sum * scale, 0.0)
            tl.store(of_x_ptr + offset, of_sum.to(of_x_ptr.dtype.element_ty), mask=inside)
    if TO_WEIGHT:
        target = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * WIDTH + columns
        tl.store(target, tl.sum(of_weight, 0), mask=columns < WIDTH)
        tl.store(target + WIDTH, tl.sum(of_bias, 0), mask=columns < WIDTH)


def add_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    seed: Tensor | None,
    state_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return LayerNorm(residual + dropout of x) over the last axis, in two dtypes.

    The first is in `state_dtype`, the second in that of x. Without a seed nothing is dropped.
    """
    return _AddNorm.apply(x, residual, weight, bias, seed, (eps, p, state_dtype))


class _AddNorm(torch.autograd.Function):
    """What backward needs are the sum's two terms, its rows' statistics and the seed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        seed: Tensor | None,
        settings: tuple[float, float, torch.dtype],
    ) -> tuple[Tensor, Tensor]:
        eps, p, state_dtype = settings
        flat = x.reshape(-1, x.shape[-1]).contiguous()  # [K, D]
        around = None if residual is None else _rows(residual)
        num_rows, width = flat.shape
        state = _new(x, state_dtype)
        operand = None if state_dtype == x.dtype else _new(x, x.dtype)
        mean, rstd = flat.new_empty((2, num_rows), dtype=torch.float32)
        if flat.numel():
            block_b, block_d, num_warps = _block(width)
            _forward_kernel[(triton.cdiv(num_rows, block_b),)](
                *(flat, flat if around is None else around),
                *(weight, bias, flat if seed is None else seed),
                *(state, state if operand is None else operand, mean, rstd),
                *(num_rows, 1 / width, eps, drop_threshold(p), 1 / (1 - p)),
                *(seed is not None, around is not None, operand is not None),
                *(width if around is None else around.stride(0), width, block_b, block_d),
                num_warps=num_warps,
            )
        ctx.save_for_backward(flat, around, weight, mean, rstd, seed)
        ctx.p = p
        ctx.set_materialize_grads(False)
        state = state.to(state_dtype)  # its alias is to autograd a tensor of its own
        return state, state.detach() if operand is None else operand.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *from_above: Tensor | None) -> tuple[Tensor | None, ...]:
        flat, around, weight, mean, rstd, seed = ctx.saved_tensors
        above = [None if each is None else each.contiguous() for each in from_above]
        given = above[0] if above[1] is None else above[1]
        if given is None:
            return (None,) * 6
        num_rows, width = flat.shape
        to_x, to_residual, *to_weights = asked = ctx.needs_input_grad[:4]
        one_gradient = around is not None and seed is None and around.dtype == flat.dtype
        of_x = of_residual = None
        if to_x or (one_gradient and to_residual):
            of_x = _new(given, flat.dtype)
        if to_residual and not one_gradient:
            of_residual = _new(given, around.dtype)
        block_b, block_d, num_warps = _block(width)
        rows_per_slice, num_slices = block_b, triton.cdiv(num_rows, block_b)
        partial = None
        if any(to_weights):
            rows_per_slice = triton.cdiv(triton.cdiv(num_rows, _MAX_SLICES), block_b) * block_b
            num_slices = triton.cdiv(num_rows, max(rows_per_slice, 1))
            partial = flat.new_empty((num_slices, 2, width), dtype=torch.float32)
        if flat.numel():
            _backward_kernel[(num_slices,)](
                *(given if each is None else each for each in above),
                *(flat, flat if around is None else around),
                *(weight, mean, rstd, flat if seed is None else seed),
                *(flat if each is None else each for each in (of_x, of_residual, partial)),
                *(num_rows, rows_per_slice, 1 / width, drop_threshold(ctx.p), 1 / (1 - ctx.p)),
                *(seed is not None, around is not None),
                *(each is not None for each in (*above, of_x, of_residual, partial)),
                *(width if around is None else around.stride(0), width, block_b, block_d),
                num_warps=num_warps,
            )
        of_x = None if of_x is None else of_x.to(flat.dtype)
        of_residual = of_x if of_residual is None else of_residual.to(around.dtype)
        of_weight, of_bias = (None, None) if partial is None else sum_slices(partial, weight.dtype)
        found = (of_x, of_residual, of_weight, of_bias)
        return *(each if ask else None for each, ask in zip(found, asked, strict=True)), None, None


def _rows(x: Tensor) -> Tensor:
    """Return x as rows [K, D], which may lie apart."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _new(like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.float32 if INTERPRETED else dtype)


def _block(width: int) -> tuple[int, int, int]:
    """Return a block's rows and columns, and its program's warps."""
    block_d = max(4, triton.next_power_of_2(width))  # dropout's mask comes in fours
    block_b = max(1, min(32, _BLOCK // block_d))
    return block_b, block_d, 4 if block_b * block_d <= _BLOCK else 8
