"""Softmax attention of strings that lie end to end, without padding: one program per string and
head, one kernel forward and one backward.

Scores, softmax and its gradient are fp32; what multiplies a narrow matrix is rounded to its type.
Backward computes the probabilities again, so nothing of them is kept. A program holds a whole
string, which is why strings of more than LONGEST tokens go elsewhere. Each token belongs to one
string: no sum crosses programs, and results repeat bitwise. Where one query is asked for per string
([CLS] in the last layer), its scores are a vector and need no matrix products.

Axes: P tokens of S strings; H heads of width D make the hidden width E.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.dropout_mask import readable

LONGEST = 128  # tokens of a string; the scores of more would not fit a program's registers
# of products of fp32: three of tf32, which are as exact (CUTLASS, 3xTF32). As fp32 products, which
# no tensor core has, the backward kernel took 28 s to compile and spilled 15 KB a thread.
EXACT: tl.constexpr = tl.constexpr("tf32x3")


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _tokens(start_ptr, length_ptr, BLOCK_L: tl.constexpr):
    """Return the rows of this program's string in [P, ...], and which of them exist."""
    position = tl.arange(0, BLOCK_L)
    rows = tl.load(start_ptr + tl.program_id(0)).to(tl.int64) + position
    return rows, position < tl.load(length_ptr + tl.program_id(0))


@triton.jit
@no_type_check
def _offsets(
    rows,
    exists,
    PART: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return where this program's head of a part lies in [.., NUM_PARTS E], and a mask."""
    column = tl.arange(0, BLOCK_D)
    first = (PART * NUM_HEADS + tl.program_id(1)) * HEAD_WIDTH
    offsets = rows[:, None] * (NUM_PARTS * NUM_HEADS * HEAD_WIDTH) + (first + column)[None, :]
    return offsets, exists[:, None] & (column < HEAD_WIDTH)[None, :]


@triton.jit
@no_type_check
def _probability(q, k, exists, root):
    """Return the fp32 probabilities [L, L] of the keys that exist."""
    scores = tl.dot(q, tl.trans(k), input_precision=EXACT) / root
    scores = tl.where(exists[None, :], scores, float("-inf"))
    weight = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weight / tl.sum(weight, 1)[:, None]


@triton.jit
@no_type_check
def _forward_kernel(
    stacked_ptr,  # [P, 3 E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    context_ptr,  # [P, E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows, exists = _tokens(start_ptr, length_ptr, BLOCK_L)
    of_q, inside = _offsets(rows, exists, 0, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_k, _ = _offsets(rows, exists, 1, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_v, _ = _offsets(rows, exists, 2, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    q = tl.load(stacked_ptr + of_q, mask=inside, other=0.0)
    k = tl.load(stacked_ptr + of_k, mask=inside, other=0.0)
    v = tl.load(stacked_ptr + of_v, mask=inside, other=0.0)
    probability = _probability(q, k, exists, root)
    context = tl.dot(probability.to(v.dtype), v, input_precision=EXACT)
    target, _ = _offsets(rows, exists, 0, 1, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    tl.store(context_ptr + target, context.to(context_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _backward_kernel(
    stacked_ptr,  # [P, 3 E]
    gradient_ptr,  # [P, E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    of_stacked_ptr,  # [P, 3 E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows, exists = _tokens(start_ptr, length_ptr, BLOCK_L)
    of_q, inside = _offsets(rows, exists, 0, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_k, _ = _offsets(rows, exists, 1, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_v, _ = _offsets(rows, exists, 2, 3, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_context, _ = _offsets(rows, exists, 0, 1, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    q = tl.load(stacked_ptr + of_q, mask=inside, other=0.0)
    k = tl.load(stacked_ptr + of_k, mask=inside, other=0.0)
    v = tl.load(stacked_ptr + of_v, mask=inside, other=0.0)
    gradient = tl.load(gradient_ptr + of_context, mask=inside, other=0.0)
    element = of_stacked_ptr.dtype.element_ty
    probability = _probability(q, k, exists, root)
    to_v = tl.dot(tl.trans(probability.to(v.dtype)), gradient, input_precision=EXACT)
    tl.store(of_stacked_ptr + of_v, to_v.to(element), mask=inside)
    to_probability = tl.dot(gradient, tl.trans(v), input_precision=EXACT)
    mean = tl.sum(to_probability * probability, 1)
    to_score = (probability * (to_probability - mean[:, None]) / root).to(q.dtype)
    to_q = tl.dot(to_score, k, input_precision=EXACT)
    tl.store(of_stacked_ptr + of_q, to_q.to(element), mask=inside)
    to_k = tl.dot(tl.trans(to_score), q, input_precision=EXACT)
    tl.store(of_stacked_ptr + of_k, to_k.to(element), mask=inside)


@triton.jit
@no_type_check
def _one_query(
    query_ptr,
    stacked_ptr,
    start_ptr,
    length_ptr,
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return this program's fp32 query [D], keys and values [L, D], and probabilities [L]."""
    rows, exists = _tokens(start_ptr, length_ptr, BLOCK_L)
    column = tl.arange(0, BLOCK_D)
    of_query = tl.program_id(0) * (NUM_HEADS * HEAD_WIDTH) + tl.program_id(1) * HEAD_WIDTH + column
    of_k, inside = _offsets(rows, exists, 0, 2, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    of_v, _ = _offsets(rows, exists, 1, 2, NUM_HEADS, HEAD_WIDTH, BLOCK_D)
    q = tl.load(query_ptr + of_query, mask=column < HEAD_WIDTH, other=0.0).to(tl.float32)
    k = tl.load(stacked_ptr + of_k, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(stacked_ptr + of_v, mask=inside, other=0.0).to(tl.float32)
    scores = tl.where(exists, tl.sum(k * q[None, :], 1) / root, float("-inf"))
    weight = tl.exp(scores - tl.max(scores, 0))
    return q, k, v, weight / tl.sum(weight, 0), of_query, of_k, of_v, inside


@triton.jit
@no_type_check
def _forward_one_kernel(
    query_ptr,  # [S, E]
    stacked_ptr,  # [P, 2 E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    context_ptr,  # [S, E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    _, _, v, probability, of_query, _, _, _ = _one_query(
        query_ptr, stacked_ptr, start_ptr, length_ptr, root, NUM_HEADS, HEAD_WIDTH, BLOCK_L, BLOCK_D
    )
    context = tl.sum(probability[:, None] * v, 0).to(context_ptr.dtype.element_ty)
    tl.store(context_ptr + of_query, context, mask=tl.arange(0, BLOCK_D) < HEAD_WIDTH)


@triton.jit
@no_type_check
def _backward_one_kernel(
    query_ptr,  # [S, E]
    stacked_ptr,  # [P, 2 E]
    gradient_ptr,  # [S, E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    to_query_ptr,  # [S, E]
    of_stacked_ptr,  # [P, 2 E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    q, k, v, probability, of_query, of_k, of_v, inside = _one_query(
        query_ptr, stacked_ptr, start_ptr, length_ptr, root, NUM_HEADS, HEAD_WIDTH, BLOCK_L, BLOCK_D
    )
    in_head = tl.arange(0, BLOCK_D) < HEAD_WIDTH
    gradient = tl.load(gradient_ptr + of_query, mask=in_head, other=0.0).to(tl.float32)
    element = of_stacked_ptr.dtype.element_ty
    to_v = probability[:, None] * gradient[None, :]
    tl.store(of_stacked_ptr + of_v, to_v.to(element), mask=inside)
    to_probability = tl.sum(v * gradient[None, :], 1)
    mean = tl.sum(to_probability * probability, 0)
    to_score = probability * (to_probability - mean) / root
    to_k = to_score[:, None] * q[None, :]
    tl.store(of_stacked_ptr + of_k, to_k.to(element), mask=inside)
    to_q = tl.sum(to_score[:, None] * k, 0)
    tl.store(to_query_ptr + of_query, to_q.to(element), mask=in_head)


def attention(
    query: Tensor | None,
    stacked: Tensor,
    start: Tensor,
    length: Tensor,
    longest: int,
    num_heads: int,
) -> Tensor:
    """Return the context [P, E] of every token, or [S, E] of one query a string.

    `stacked` has query, key and value side by side, [P, 3 E], or key and value, [P, 2 E], where
    `query` [S, E] is given. The strings begin at rows `start` [S] and have `length` [S] tokens, at
    most `longest`; together they cover all P rows.
    """
    return _Attention.apply(query, stacked, start, length, longest, num_heads)


class _Attention(torch.autograd.Function):
    """Attention whose backward pass needs its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor | None,
        stacked: Tensor,
        start: Tensor,
        length: Tensor,
        longest: int,
        num_heads: int,
    ) -> Tensor:
        given = [readable(stacked)] if query is None else [readable(query), readable(stacked)]
        num_queries = len(given[0])
        width = stacked.shape[1] // (3 if query is None else 2)
        context = given[0].new_empty(num_queries, width)
        ctx.sizes = (longest, num_heads, width // num_heads)
        kernel = _forward_kernel if query is None else _forward_one_kernel
        _launch(kernel, [*given, start, length, context], len(start), *ctx.sizes)
        ctx.save_for_backward(start, length, *given)
        ctx.dtype = stacked.dtype
        return context.to(stacked.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        start, length, *given = ctx.saved_tensors
        found = [torch.empty_like(tensor) for tensor in given]
        kernel = _backward_kernel if len(given) == 1 else _backward_one_kernel
        pointers = [*given, readable(gradient), start, length, *found]
        _launch(kernel, pointers, len(start), *ctx.sizes)
        *of_query, of_stacked = (tensor.to(ctx.dtype) for tensor in found)
        return (of_query[0] if of_query else None, of_stacked, None, None, None, None)


def _launch(
    kernel: Any,
    pointers: list[Tensor],
    num_strings: int,
    longest: int,
    num_heads: int,
    head_width: int,
) -> None:
    assert longest <= LONGEST
    # tl.dot takes 16 at least
    block_l, block_d = (max(16, triton.next_power_of_2(size)) for size in (longest, head_width))
    kernel[(num_strings, num_heads)](
        *pointers,
        math.sqrt(head_width),
        num_heads,
        head_width,
        block_l,
        block_d,
        num_warps=8 if block_l > 64 else 4,
    )
