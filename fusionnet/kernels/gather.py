"""Rows from vectors of distinct strings, fused with what follows, and a backward pass without
atomics.

PyTorch's backward of a gather adds B rows into U places with atomics: with few distinct strings
they queue for the same addresses, and the order of the additions, hence the last bits, changes from
run to run (pytorch issue 20655). Here dV [U, D] = onehot(index)^T [U, B] @ dG [B, D]: one-hot is
exact in every type, so this is a sum with fp32 accumulators, on tensor cores for bf16 and fp16. B
is cut into a number of parts that depends on B alone, each part is summed in order, and so are the
parts. For many segments the one-hot product would be mostly zeros: rows are sorted by segment
instead (stable) and each segment is summed in order. Both are bitwise repeatable. A gradient that
is not finite spreads over its column of dV in the product (0 x inf = NaN).

Dropout's mask is a function of (seed, row, column) by Philox, so backward draws it again instead of
reading it.

These are opaque `custom_op`s, not `triton_op`s: inductor has nothing to gain from looking into a
kernel that is already fused, and a `triton_op`'s body must be traceable, which the interpreter that
the tests run on is not.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusionnet.kernels.reference import KEEP_BITS

ONEHOT_MAX_SEGMENTS = 256  # above, rows are sorted: the product costs B x U x D
# the interpreter's bf16 is cut, not rounded, and its tl.dot multiplies bit patterns (triton issue
# 11584): fp32
INTERPRETED = triton.knobs.runtime.interpret
_MAX_PARTS = 32  # parts of B; with 4 blocks of columns they fill an H100's 132 multiprocessors


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _keep(seed_ptr, rows, first_column, threshold, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the mask [BLOCK_B, BLOCK_D] of `reference.keep_mask`: one Philox call makes four
    neighbours.
    """
    quads = first_column // 4 + tl.arange(0, BLOCK_D // 4)
    zero = tl.zeros([BLOCK_B, BLOCK_D // 4], tl.int32)
    w0, w1, w2, w3 = tl.philox(
        tl.load(seed_ptr), quads[None, :] + zero, rows[:, None] + zero, zero, zero
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK_B, BLOCK_D])
    return (words >> 8).to(tl.int32) >= threshold


@triton.jit
@no_type_check
def _gather_add_kernel(
    table_ptr,  # [U, D]
    index_ptr,  # [B, C]
    dense_ptr,  # [B, D]
    out_ptr,  # [B, D]
    num_rows,
    width,
    NUM_COLUMNS: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    place = rows[:, None] * width + columns[None, :]
    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    if HAS_DENSE:
        total += tl.load(dense_ptr + place, mask=inside, other=0.0).to(tl.float32)
    for column in tl.static_range(NUM_COLUMNS):
        segment = tl.load(index_ptr + rows * NUM_COLUMNS + column, mask=rows < num_rows, other=0)
        total += tl.load(
            table_ptr + segment[:, None] * width + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _gather_dropout_kernel(
    hidden_ptr,  # [U, H]
    index_ptr,  # [B]
    seed_ptr,  # [1]
    out_ptr,  # [B, H]
    num_rows,
    width,
    threshold,
    scale,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    keep = _keep(seed_ptr, rows, tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D)
    segment = tl.load(index_ptr + rows, mask=rows < num_rows, other=0)
    value = (
        tl.load(
            hidden_ptr + segment[:, None] * width + columns[None, :], mask=inside & keep, other=0.0
        ).to(tl.float32)
        * scale
    )
    tl.store(
        out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :],
        value.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


@triton.jit
@no_type_check
def _onehot_kernel(
    gradient_ptr,  # [B, D]
    index_ptr,  # [B, C]
    seed_ptr,  # [1]
    partial_ptr,  # [parts, U, D] fp32
    num_rows,
    width,
    num_segments,
    rows_per_part,
    threshold,
    scale,
    NUM_COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    first_row = tl.program_id(0) * rows_per_part
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    segments = tl.program_id(2) * BLOCK_U + tl.arange(0, BLOCK_U)
    total = tl.zeros([BLOCK_U, BLOCK_D], tl.float32)
    for start in range(0, rows_per_part, BLOCK_B):
        rows = first_row + start + tl.arange(0, BLOCK_B)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        if MASKED:
            inside &= _keep(seed_ptr, rows, tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D)
        block = tl.load(
            gradient_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :],
            mask=inside,
            other=0.0,
        )
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
    place = (tl.program_id(0).to(tl.int64) * num_segments + segments[:, None]) * width + columns[
        None, :
    ]
    tl.store(
        partial_ptr + place,
        total * scale,
        mask=(segments < num_segments)[:, None] & (columns < width)[None, :],
    )


@triton.jit
@no_type_check
def _sum_parts_kernel(partial_ptr, out_ptr, num_parts, num_elements, BLOCK: tl.constexpr):
    """Add [parts, elements] over the parts, in order."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(partial_ptr + part * num_elements + places, mask=inside, other=0.0)
    tl.store(out_ptr + places, total, mask=inside)


@triton.jit
@no_type_check
def _sorted_kernel(
    gradient_ptr,  # [B, D]
    order_ptr,  # [B * C]: places in index.flatten(), by segment
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
        places = start + tl.arange(0, BLOCK_B)
        rows = tl.load(order_ptr + places, mask=places < end, other=0) // NUM_COLUMNS
        inside = (places < end)[:, None] & (columns < width)[None, :]
        if MASKED:
            inside &= _keep(
                seed_ptr, rows.to(tl.int32), tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D
            )
        total += tl.load(
            gradient_ptr + rows[:, None] * width + columns[None, :], mask=inside, other=0.0
        ).to(tl.float32)
    tl.store(
        out_ptr + segment.to(tl.int64) * width + columns,
        tl.sum(total, 0) * scale,
        mask=columns < width,
    )


@torch.library.custom_op("fusionnet::gather_add", mutates_args=())
def gather_add(table: Tensor, index: Tensor, dense: Tensor | None) -> Tensor:
    """Return dense [B, D] + sum over c of table [U, D] at index [B, C], added in fp32, in the wider
    of the two types.
    """
    table, index = table.contiguous(), index.contiguous()
    (num_rows, num_columns), width = index.shape, table.shape[1]
    dtype = _wider(table, dense)
    out = table.new_empty((num_rows, width), dtype=torch.float32 if INTERPRETED else dtype)
    if out.numel():
        given = table if dense is None else dense.contiguous()
        block_b, block_d = 32, min(128, triton.next_power_of_2(width))
        grid = (triton.cdiv(num_rows, block_b), triton.cdiv(width, block_d))
        _gather_add_kernel[grid](
            table,
            index,
            given,
            out,
            num_rows,
            width,
            num_columns,
            dense is not None,
            block_b,
            block_d,
        )
    return out.to(dtype)


@torch.library.custom_op("fusionnet::gather_dropout", mutates_args=())
def gather_dropout(hidden: Tensor, index: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return hidden [U, H] at index [B], each element zeroed with probability p and the others
    scaled by 1 / (1 - p).
    """
    hidden, index = hidden.contiguous(), index.contiguous()
    num_rows, width = len(index), hidden.shape[1]
    out = hidden.new_empty((num_rows, width), dtype=torch.float32 if INTERPRETED else hidden.dtype)
    if out.numel():
        block_b, block_d = 32, max(4, min(128, triton.next_power_of_2(width)))
        grid = (triton.cdiv(num_rows, block_b), triton.cdiv(width, block_d))
        _gather_dropout_kernel[grid](
            hidden, index, seed, out, num_rows, width, _threshold(p), 1 / (1 - p), block_b, block_d
        )
    return out.to(hidden.dtype)


@torch.library.custom_op("fusionnet::segment_sum", mutates_args=())
def segment_sum(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    """Return in fp32 per segment the sum of the rows of gradient [B, D] that index [B, C] sends
    there, after dropout's mask where there is a seed.
    """
    gradient, index = gradient.contiguous(), index.contiguous()
    if gradient.numel() == 0:
        return gradient.new_zeros((num_segments, gradient.shape[1]), dtype=torch.float32)
    summed = _sum_onehot if num_segments <= ONEHOT_MAX_SEGMENTS else _sum_sorted
    return summed(gradient, index, num_segments, p, seed)


def _sum_onehot(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    num_rows, width = gradient.shape
    # tl.dot takes 16 at least
    block_b, block_u = 64, min(64, max(16, triton.next_power_of_2(num_segments)))
    block_d = max(
        16, min(128 if gradient.element_size() == 2 else 64, triton.next_power_of_2(width))
    )
    rows_per_part = triton.cdiv(triton.cdiv(num_rows, _MAX_PARTS), block_b) * block_b
    num_parts = triton.cdiv(num_rows, rows_per_part)
    partial = gradient.new_empty((num_parts, num_segments, width), dtype=torch.float32)
    grid = (num_parts, triton.cdiv(width, block_d), triton.cdiv(num_segments, block_u))
    sizes = (num_rows, width, num_segments, rows_per_part, _threshold(p), 1 / (1 - p))
    _onehot_kernel[grid](
        gradient,
        index,
        gradient if seed is None else seed,
        partial,
        *sizes,
        index.shape[1],
        seed is not None,
        INTERPRETED,
        block_b,
        block_d,
        block_u,
    )
    if num_parts == 1:
        return partial[0]
    out = torch.empty_like(partial[0])
    _sum_parts_kernel[(triton.cdiv(out.numel(), 256),)](partial, out, num_parts, out.numel(), 256)
    return out


def _sum_sorted(
    gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None
) -> Tensor:
    width = gradient.shape[1]
    ordered = index.flatten().sort(stable=True)
    bound = torch.searchsorted(ordered.values, torch.arange(num_segments + 1, device=index.device))
    out = gradient.new_empty((num_segments, width), dtype=torch.float32)
    block_d = max(4, min(128, triton.next_power_of_2(width)))
    grid = (num_segments, triton.cdiv(width, block_d))
    _sorted_kernel[grid](
        gradient,
        ordered.indices,
        bound,
        gradient if seed is None else seed,
        out,
        width,
        _threshold(p),
        1 / (1 - p),
        index.shape[1],
        seed is not None,
        16,
        block_d,
    )
    return out


def _threshold(p: float) -> int:
    return round(p * (1 << KEEP_BITS))


def _wider(table: Tensor, dense: Tensor | None) -> torch.dtype:
    return table.dtype if dense is None else torch.promote_types(table.dtype, dense.dtype)


@gather_add.register_fake
def _(table: Tensor, index: Tensor, dense: Tensor | None) -> Tensor:
    return table.new_empty((index.shape[0], table.shape[1]), dtype=_wider(table, dense))


@gather_dropout.register_fake
def _(hidden: Tensor, index: Tensor, p: float, seed: Tensor) -> Tensor:
    return hidden.new_empty((index.shape[0], hidden.shape[1]))


@segment_sum.register_fake
@no_type_check  # num_segments may be symbolic
def _(gradient: Tensor, index: Tensor, num_segments: int, p: float, seed: Tensor | None) -> Tensor:
    return gradient.new_empty((num_segments, gradient.shape[1]), dtype=torch.float32)


def _save_add(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    table, index, dense = inputs
    ctx.save_for_backward(index)
    ctx.num_segments, ctx.dtypes = (
        table.shape[0],
        (table.dtype, None if dense is None else dense.dtype),
    )


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    (index,) = ctx.saved_tensors
    table_dtype, dense_dtype = ctx.dtypes
    to_table = (
        segment_sum(gradient, index, ctx.num_segments, 0.0, None).to(table_dtype)
        if ctx.needs_input_grad[0]
        else None
    )
    return to_table, None, None if dense_dtype is None else gradient.to(dense_dtype)


def _save_dropout(ctx: Any, inputs: tuple[Tensor, Tensor, float, Tensor], output: Tensor) -> None:
    hidden, index, p, seed = inputs
    ctx.save_for_backward(index, seed)
    ctx.num_segments, ctx.p, ctx.dtype = hidden.shape[0], p, hidden.dtype


def _dropout_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    index, seed = ctx.saved_tensors
    return (
        segment_sum(gradient, index.unsqueeze(1), ctx.num_segments, ctx.p, seed).to(ctx.dtype),
        None,
        None,
        None,
    )


gather_add.register_autograd(_add_backward, setup_context=_save_add)
gather_dropout.register_autograd(_dropout_backward, setup_context=_save_dropout)
