"""What follows the first layers of all heads, side by side in one matrix: one kernel each way.

A head with one hidden layer ends here, in a single number a row: ReLU, dropout and its last layer.
Of a deeper head this is ReLU and dropout. PyTorch takes a handful of small kernels a head. What
backward needs is the matrix, which holds all signs, and the seed.

A program takes some rows of one piece: of a head that ends here, or of a part of a deeper one. What
tells pieces apart is a small table on the device, copied there once. Gradients of the last layers
are sums over slices of the rows, then over the slices: bitwise repeatable.

Axes: B rows, W columns of all first layers, V those of deeper heads, T heads that end here, N the
weights and the biases of their last layers.
"""

from functools import cache
from math import gcd
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.dropout_mask import drop_threshold, keep, readable
from embedcache.kernels.sum_slices import sum_slices
from fusionnet.kernels.reference import Segment, mask_firsts

_BLOCK = 2048  # elements of a program at a time: 16 a thread
_MAX_SLICES = 128  # of B; each has a program for each piece
_FIELDS = tl.constexpr(6)  # of a piece


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _scales(
    x,
    seed_ptr,
    rows,
    random_first,
    threshold,
    MASKED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Return 0 where ReLU or dropout leaves nothing of x, else dropout's factor."""
    scales = tl.where((x > 0) | (x != x), 1.0, 0.0)  # what is no number stays to be seen
    if MASKED:  # noqa: SIM102 (known when this is compiled, the other one is not)
        if threshold > 0:
            kept = keep(seed_ptr, rows, random_first, threshold, BLOCK_B, BLOCK_W)
            share = 1.0 - threshold.to(tl.float32) * 5.9604644775390625e-08  # 2^-KEEP_BITS: exact
            scales = tl.where(kept, scales / share, 0.0)
    return scales


@triton.jit
@no_type_check
def _forward_kernel(
    hidden_ptr,  # [B, W]
    last_ptr,  # [N]
    seed_ptr,  # [1]
    piece_ptr,  # [pieces, 6]
    out_ptr,  # [B, T]
    active_ptr,  # [B, V]
    num_rows,
    width,
    num_ends,
    num_weights,
    active_width,
    MASKED: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # of all pieces, known so that loads are as wide as it allows
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    piece = piece_ptr + tl.program_id(1) * _FIELDS
    first = tl.multiple_of(tl.load(piece), ALIGNMENT)
    size = tl.multiple_of(tl.load(piece + 1), ALIGNMENT)
    end, target = tl.load(piece + 2), tl.multiple_of(tl.load(piece + 3), ALIGNMENT)
    threshold, random_first = tl.load(piece + 4), tl.load(piece + 5)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.arange(0, BLOCK_W)
    long_rows = rows.to(tl.int64)[:, None]
    inside = (rows < num_rows)[:, None] & (columns < size)[None, :]
    offset = long_rows * width + first + columns[None, :]
    x = tl.load(hidden_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x *= _scales(x, seed_ptr, rows, random_first, threshold, MASKED, BLOCK_B, BLOCK_W)
    if end < 0:
        offset = long_rows * active_width + target + columns[None, :]
        tl.store(active_ptr + offset, x.to(active_ptr.dtype.element_ty), mask=inside)
    else:
        weight = tl.load(last_ptr + first + columns, mask=columns < size, other=0.0)
        bias = tl.load(last_ptr + num_weights + end)
        y = tl.sum(x * weight.to(tl.float32)[None, :], 1) + bias.to(tl.float32)
        tl.store(out_ptr + rows.to(tl.int64) * num_ends + end, y, mask=rows < num_rows)


@triton.jit
@no_type_check
def _backward_kernel(
    of_out_ptr,  # [B, T], by strides
    of_active_ptr,  # [B, V]
    hidden_ptr,  # [B, W]
    last_ptr,  # [N]
    seed_ptr,  # [1]
    piece_ptr,  # [pieces, 6]
    of_hidden_ptr,  # [B, W]
    partial_ptr,  # [slices, N]
    num_rows,
    width,
    num_ends,
    num_weights,
    active_width,
    row_stride,
    end_stride,
    rows_per_slice,
    MASKED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    piece = piece_ptr + tl.program_id(1) * _FIELDS
    first = tl.multiple_of(tl.load(piece), ALIGNMENT)
    size = tl.multiple_of(tl.load(piece + 1), ALIGNMENT)
    end, target = tl.load(piece + 2), tl.multiple_of(tl.load(piece + 3), ALIGNMENT)
    threshold, random_first = tl.load(piece + 4), tl.load(piece + 5)
    columns = tl.arange(0, BLOCK_W)
    is_end = end >= 0
    weight = tl.load(
        last_ptr + first + columns, mask=columns < tl.where(is_end, size, 0), other=0.0
    )
    weight = weight.to(tl.float32)[None, :]
    of_weight = tl.zeros([BLOCK_B, BLOCK_W], tl.float32)
    of_bias = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, rows_per_slice, BLOCK_B):
        rows = tl.program_id(0) * rows_per_slice + start + tl.arange(0, BLOCK_B)
        long_rows = rows.to(tl.int64)[:, None]
        inside = (rows < num_rows)[:, None] & (columns < size)[None, :]
        offset = long_rows * width + first + columns[None, :]
        x = tl.load(hidden_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        scales = _scales(x, seed_ptr, rows, random_first, threshold, MASKED, BLOCK_B, BLOCK_W)
        if is_end:
            above = of_out_ptr + rows.to(tl.int64) * row_stride + end * end_stride
            of_y = tl.load(above, mask=rows < num_rows, other=0.0).to(tl.float32)
            of_weight += of_y[:, None] * (x * scales)
            of_bias += of_y
            of_x = of_y[:, None] * weight
        else:
            source = of_active_ptr + long_rows * active_width + target + columns[None, :]
            of_x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        # a gradient that is no number passes ReLU where x does, as PyTorch's
        of_x = tl.where(scales > 0, of_x * scales, 0.0)
        tl.store(of_hidden_ptr + offset, of_x.to(of_hidden_ptr.dtype.element_ty), mask=inside)
    if is_end:
        partial = partial_ptr + tl.program_id(0).to(tl.int64) * (num_weights + num_ends)
        tl.store(partial + first + columns, tl.sum(of_weight, 0), mask=columns < size)
        tl.store(partial + num_weights + end, tl.sum(of_bias, 0))


def head_ends(
    hidden: Tensor, last: Tensor, segments: tuple[Segment, ...], seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs [B, T] in fp32 of heads that end here, and what goes on [B, V].

    `hidden` [B, W] is cut into the segments, those that end first; `last` [N] are their weights,
    then their biases. Without a seed nothing is dropped.
    """
    return _HeadEnds.apply(hidden, last, segments, seed)


class _HeadEnds(torch.autograd.Function):
    """What backward needs are the first layers' outputs, the last layers' weights and the seed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        last: Tensor,
        segments: tuple[Segment, ...],
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        given = readable(hidden)
        num_rows, width = hidden.shape
        ends = [segment.width for segment in segments if segment.ends]
        ctx.sizes = sizes = (num_rows, width, len(ends), sum(ends), width - sum(ends))
        block_w = max(4, triton.next_power_of_2(max(ends)))  # dropout's mask comes in fours
        pieces, alignment = _pieces(segments, block_w, hidden.device)
        block_b = max(1, _BLOCK // block_w)
        ctx.blocks = blocks = (seed is not None, alignment, block_b, block_w)
        out = given.new_empty((num_rows, len(ends)), dtype=torch.float32)
        active = given.new_empty((num_rows, width - sum(ends)))
        last = last.contiguous()
        if num_rows:
            grid = (triton.cdiv(num_rows, block_b), len(pieces))
            seeds = pieces if seed is None else seed
            _forward_kernel[grid](given, last, seeds, pieces, out, active, *sizes, *blocks)
        ctx.save_for_backward(hidden, last, seed, pieces)
        return out, active.to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor, of_active: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, last, seed, pieces = ctx.saved_tensors
        num_rows, block_b = len(hidden), ctx.blocks[2]
        of_hidden = torch.empty_like(readable(hidden))
        if not num_rows:
            return of_hidden.to(hidden.dtype), torch.zeros_like(last), None, None
        rows_per_slice = triton.cdiv(triton.cdiv(num_rows, _MAX_SLICES), block_b) * block_b
        num_slices = triton.cdiv(num_rows, rows_per_slice)
        partial = hidden.new_empty((num_slices, len(last)), dtype=torch.float32)
        _backward_kernel[(num_slices, len(pieces))](
            *(of_out, readable(of_active), readable(hidden), last),
            *(pieces if seed is None else seed, pieces, of_hidden, partial),
            *(*ctx.sizes, *of_out.stride(), rows_per_slice, *ctx.blocks),
        )
        return of_hidden.to(hidden.dtype), sum_slices(partial, last.dtype), None, None


@cache  # for ever: a CUDA graph may read it
def _pieces(
    segments: tuple[Segment, ...], block_w: int, device: torch.device
) -> tuple[Tensor, int]:
    """Return the table of pieces on a device, copied there once, and what divides their places.

    A piece is (first column, columns, number of the output or -1, first column of what goes on,
    dropout's threshold, first column of its mask).
    """
    table, first, num_ends, target = [], 0, 0, 0
    for segment, random_first in zip(segments, mask_firsts(segments), strict=True):
        threshold = drop_threshold(segment.p)
        for start in range(0, segment.width, block_w):
            size = min(block_w, segment.width - start)
            end = num_ends if segment.ends else -1
            table.append([first, size, end, target, threshold, random_first + start])
            first += size
            target += 0 if segment.ends else size
        num_ends += segment.ends
    alignment = gcd(16, *(place for piece in table for place in (*piece[:2], piece[3])))
    return torch.tensor(table, dtype=torch.int32, device=device), alignment
