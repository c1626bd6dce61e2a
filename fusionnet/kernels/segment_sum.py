"""Sums of rows by segment, which are the backward pass of a gather, without atomics.

PyTorch's backward of a gather adds B rows into U vectors with atomics: with few distinct strings
they queue for the same addresses, and the order of the additions, hence the last bits, changes from
run to run (pytorch issue 20655). Here dV [U, D] = onehot(index)^T [U, B] @ dG [B, D]: one-hot is
exact in every type, so this is a sum with fp32 accumulators, on tensor cores for bf16 and fp16. B
is cut into a number of slices that depends on B alone, each slice is summed in order, and so are
the slices. For many segments the one-hot product would be mostly zeros: rows are sorted by segment
instead (stable) and each segment is summed in order. Both are bitwise repeatable. A gradient that
is not finite spreads over its column of dV in the product (0 x inf = NaN).

Axes: B rows, U segments, D their width, C columns of the index.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from embedcache.kernels.dropout_mask import INTERPRETED, drop_threshold, keep

ONEHOT_MAX_SEGMENTS = 256  # above, rows are sorted: the product costs B x U x D
_MAX_SLICES = 32  # of B; with 4 blocks of columns they fill an H100's 132 multiprocessors


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _onehot_kernel(
    gradient_ptr,  # [B, D]
    index_ptr,  # [B, C]
    seed_ptr,  # [1]
    partial_ptr,  # [slices, U, D] fp32
    num_rows,
    width,
    num_segments,
    rows_per_slice,
    threshold,
    scale,
    NUM_COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    first_row = tl.program_id(0) * rows_per_slice
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    segments = tl.program_id(2) * BLOCK_U + tl.arange(0, BLOCK_U)
    total = tl.zeros([BLOCK_U, BLOCK_D], tl.float32)
    for start in range(0, rows_per_slice, BLOCK_B):
        rows = first_row + start + tl.arange(0, BLOCK_B)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        offset = rows.to(tl.int64)[:, None] * width + columns[None, :]
        block = tl.load(gradient_ptr + offset, mask=inside, other=0.0)
        if MASKED:  # in the load's mask it would split the load into single elements
            kept = keep(seed_ptr, rows, tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D)
            block = tl.where(kept, block, tl.zeros_like(block))
        if WIDE:
            block = block.to(tl.float32)
        hits = tl.zeros([BLOCK_U, BLOCK_B], tl.float32)
        for column in tl.static_range(NUM_COLUMNS):
            segment = tl.load(
                index_ptr + rows.to(tl.int64) * NUM_COLUMNS + column, mask=rows < num_rows, other=-1
            )
            hits += (segment[None, :] == segments[:, None]).to(tl.float32)
        # tf32 would round fp32 gradients
        total = tl.dot(hits.to(block.dtype), block, total, input_precision="ieee")
    partial_row = tl.program_id(0).to(tl.int64) * num_segments + segments[:, None]
    exists = (segments < num_segments)[:, None] & (columns < width)[None, :]
    tl.store(partial_ptr + partial_row * width + columns[None, :], total * scale, mask=exists)


@triton.jit
@no_type_check
def _sum_slices_kernel(partial_ptr, out_ptr, num_slices, num_elements, BLOCK: tl.constexpr):
    """Add [slices, elements] over the slices, in order."""
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = elements < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    for number in range(num_slices):
        total += tl.load(partial_ptr + number * num_elements + elements, mask=inside, other=0.0)
    tl.store(out_ptr + elements, total, mask=inside)


@triton.jit
@no_type_check
def _sorted_kernel(
    gradient_ptr,  # [B, D]
    order_ptr,  # [B * C]: positions in index.flatten(), by segment
    bound_ptr,  # [U + 1]: where each segment begins in order
    seed_ptr,  # [1]
    out_ptr,  # [U, D] fp32
    width,
    threshold,
    scale,
    NUM_COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = tl.load(bound_ptr + segment), tl.load(bound_ptr + segment + 1)
    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_B):
        positions = start + tl.arange(0, BLOCK_B)
        rows = tl.load(order_ptr + positions, mask=positions < end, other=0) // NUM_COLUMNS
        inside = (positions < end)[:, None] & (columns < width)[None, :]
        source = gradient_ptr + rows[:, None] * width + columns[None, :]
        block = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            kept = keep(
                seed_ptr, rows.to(tl.int32), tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D
            )
            block = tl.where(kept, block, 0.0)
        total += block
    target = out_ptr + segment.to(tl.int64) * width + columns
    tl.store(target, tl.sum(total, 0) * scale, mask=columns < width)


@torch.library.custom_op("fusionnet::segment_sum", mutates_args=())
def segment_sum(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    """Return per segment the sum of the rows of gradient [B, D] that index [B, C] sends there.

    It is [U, D] in fp32, after dropout's mask where there is a seed.
    """
    gradient, index = gradient.contiguous(), index.contiguous()
    if gradient.numel() == 0:
        return gradient.new_zeros((num_segments, gradient.shape[1]), dtype=torch.float32)
    summed = _sum_onehot if num_segments <= ONEHOT_MAX_SEGMENTS else _sum_sorted
    return summed(gradient, index, num_segments, p, seed)


def _sum_onehot(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    """Return the sums as a product with a one-hot matrix."""
    num_rows, width = gradient.shape
    # tl.dot takes 16 at least
    block_b, block_u = 64, min(64, max(16, triton.next_power_of_2(num_segments)))
    widest = 128 if gradient.element_size() == 2 else 64
    block_d = max(16, min(widest, triton.next_power_of_2(width)))
    rows_per_slice = triton.cdiv(triton.cdiv(num_rows, _MAX_SLICES), block_b) * block_b
    num_slices = triton.cdiv(num_rows, rows_per_slice)
    partial = gradient.new_empty((num_slices, num_segments, width), dtype=torch.float32)
    grid = (num_slices, triton.cdiv(width, block_d), triton.cdiv(num_segments, block_u))
    pointers = (gradient, index, gradient if seed is None else seed, partial)
    sizes = (num_rows, width, num_segments, rows_per_slice)
    mask = (drop_threshold(p), 1 / (1 - p))
    flags = (index.shape[1], seed is not None, INTERPRETED)
    _onehot_kernel[grid](*pointers, *sizes, *mask, *flags, block_b, block_d, block_u)
    if num_slices == 1:
        return partial[0]
    out = torch.empty_like(partial[0])
    _sum_slices_kernel[(triton.cdiv(out.numel(), 256),)](partial, out, num_slices, out.numel(), 256)
    return out


def _sum_sorted(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    """Return the sums over rows that are sorted by segment."""
    width = gradient.shape[1]
    ordered = index.flatten().sort(stable=True)
    bound = torch.searchsorted(ordered.values, torch.arange(num_segments + 1, device=index.device))
    out = gradient.new_empty((num_segments, width), dtype=torch.float32)
    block_d = max(4, min(128, triton.next_power_of_2(width)))
    grid = (num_segments, triton.cdiv(width, block_d))
    pointers = (gradient, ordered.indices, bound, gradient if seed is None else seed, out)
    mask = (drop_threshold(p), 1 / (1 - p))
    _sorted_kernel[grid](*pointers, width, *mask, index.shape[1], seed is not None, 16, block_d)
    return out


@segment_sum.register_fake
@no_type_check  # num_segments may be symbolic
def _(gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None) -> Tensor:
    return gradient.new_empty((num_segments, gradient.shape[1]), dtype=torch.float32)
