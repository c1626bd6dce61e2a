"""Rows from vectors of distinct strings, fused with what follows: a sum, or dropout.

Their backward passes are sums over segments (`segment_sum`). Dropout's mask is a function of (seed,
row, column) by Philox, so backward draws it again instead of reading it.

These are opaque `custom_op`s, not `triton_op`s: inductor has nothing to gain from looking into a
kernel that is already fused, and a `triton_op`'s body must be traceable, which the interpreter that
the tests run on is not.

Axes: B rows, U distinct vectors (segments), D their width, C columns of the index.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from embedcache.kernels.dropout_mask import INTERPRETED, drop_threshold, keep
from fusionnet.kernels.segment_sum import segment_sum


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
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
    offset = rows[:, None] * width + columns[None, :]
    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    if HAS_DENSE:
        total += tl.load(dense_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    for column in tl.static_range(NUM_COLUMNS):
        segment = tl.load(index_ptr + rows * NUM_COLUMNS + column, mask=rows < num_rows, other=0)
        source = table_ptr + segment[:, None] * width + columns[None, :]
        total += tl.load(source, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _gather_dropout_kernel(
    hidden_ptr,  # [U, D]
    index_ptr,  # [B]
    seed_ptr,  # [1]
    out_ptr,  # [B, D]
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
    kept = keep(seed_ptr, rows, tl.program_id(1) * BLOCK_D, threshold, BLOCK_B, BLOCK_D)
    segment = tl.load(index_ptr + rows, mask=rows < num_rows, other=0)
    source = hidden_ptr + segment[:, None] * width + columns[None, :]
    # a mask per element in the load would split it into single elements
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32) * scale
    value = tl.where(kept, value, 0.0)
    offset = rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("fusionnet::gather_add", mutates_args=())
def gather_add(table: Tensor, index: Tensor, dense: Tensor | None) -> Tensor:
    """Return dense [B, D] + sum over c of table [U, D] at index [B, C].

    Added in fp32, and returned in the wider of the two types.
    """
    table, index = table.contiguous(), index.contiguous()
    (num_rows, num_columns), width = index.shape, table.shape[1]
    dtype = _wider(table, dense)
    out = table.new_empty((num_rows, width), dtype=torch.float32 if INTERPRETED else dtype)
    if out.numel():
        given = table if dense is None else dense.contiguous()
        block_b, block_d = 32, min(128, triton.next_power_of_2(width))
        grid = (triton.cdiv(num_rows, block_b), triton.cdiv(width, block_d))
        sizes = (num_rows, width, num_columns)
        _gather_add_kernel[grid](
            table, index, given, out, *sizes, dense is not None, block_b, block_d
        )
    return out.to(dtype)


@torch.library.custom_op("fusionnet::gather_dropout", mutates_args=())
def gather_dropout(hidden: Tensor, index: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return hidden [U, D] at index [B] after dropout with probability p.

    Elements that stay are scaled by 1 / (1 - p).
    """
    hidden, index = hidden.contiguous(), index.contiguous()
    num_rows, width = len(index), hidden.shape[1]
    out = hidden.new_empty((num_rows, width), dtype=torch.float32 if INTERPRETED else hidden.dtype)
    if out.numel():
        block_b, block_d = 32, max(4, min(128, triton.next_power_of_2(width)))
        grid = (triton.cdiv(num_rows, block_b), triton.cdiv(width, block_d))
        _gather_dropout_kernel[grid](
            hidden,
            index,
            seed,
            out,
            num_rows,
            width,
            drop_threshold(p),
            1 / (1 - p),
            block_b,
            block_d,
        )
    return out.to(hidden.dtype)


def _wider(table: Tensor, dense: Tensor | None) -> torch.dtype:
    return table.dtype if dense is None else torch.promote_types(table.dtype, dense.dtype)


@gather_add.register_fake
def _(table: Tensor, index: Tensor, dense: Tensor | None) -> Tensor:
    return table.new_empty((index.shape[0], table.shape[1]), dtype=_wider(table, dense))


@gather_dropout.register_fake
def _(hidden: Tensor, index: Tensor, p: float, seed: Tensor) -> Tensor:
    return hidden.new_empty((index.shape[0], hidden.shape[1]))


def _save_add(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    table, index, dense = inputs
    ctx.save_for_backward(index)
    ctx.num_segments = table.shape[0]
    ctx.dtypes = (table.dtype, None if dense is None else dense.dtype)


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    (index,) = ctx.saved_tensors
    table_dtype, dense_dtype = ctx.dtypes
    to_table = None
    if ctx.needs_input_grad[0]:
        to_table = segment_sum(gradient, index, ctx.num_segments, 0.0, None).to(table_dtype)
    to_dense = None if dense_dtype is None else gradient.to(dense_dtype)
    return to_table, None, to_dense


def _save_dropout(ctx: Any, inputs: tuple[Tensor, Tensor, float, Tensor], output: Tensor) -> None:
    hidden, index, p, seed = inputs
    ctx.save_for_backward(index, seed)
    ctx.num_segments = hidden.shape[0]
    ctx.p = p
    ctx.dtype = hidden.dtype


def _dropout_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    index, seed = ctx.saved_tensors
    to_hidden = segment_sum(gradient, index.unsqueeze(1), ctx.num_segments, ctx.p, seed)
    return to_hidden.to(ctx.dtype), None, None, None


gather_add.register_autograd(_add_backward, setup_context=_save_add)
gather_dropout.register_autograd(_dropout_backward, setup_context=_save_dropout)
