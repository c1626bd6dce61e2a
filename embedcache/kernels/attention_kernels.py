"""What `attention` launches: a kernel forward and one backward, of all tokens and of one query a
string.

Axes: P tokens of S strings lie end to end; H heads of width D make the hidden width E; L is a
tile's number of tokens. The grid is H x S.
"""

from typing import no_type_check

import triton
import triton.language as tl

# of products of fp32: three of tf32, which are as exact (CUTLASS, 3xTF32). As fp32 products, which
# no tensor core has, the backward kernel took 28 s to compile and spilled 15 KB a thread.
EXACT: tl.constexpr = tl.constexpr("tf32x3")


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _string():
    """Return this program's string: the last, which are the longest, come first."""
    return tl.num_programs(1) - 1 - tl.program_id(1)


@triton.jit
@no_type_check
def _tokens(start_ptr, length, BLOCK_L: tl.constexpr):
    """Return the rows of this program's string in [P, ...], and which of them exist."""
    position = tl.arange(0, BLOCK_L)
    return tl.load(start_ptr + _string()).to(tl.int64) + position, position < length


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
    first = (PART * NUM_HEADS + tl.program_id(0)) * HEAD_WIDTH
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
def _forward_tile(
    stacked_ptr,
    start_ptr,
    length,
    context_ptr,
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the context of this program's string and head."""
    rows, exists = _tokens(start_ptr, length, BLOCK_L)
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
def forward_kernel(
    stacked_ptr,  # [P, 3 E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    context_ptr,  # [P, E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    HALF: tl.constexpr,
    QUARTER: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write every token's context, each string by the smallest tile that holds it."""
    length = tl.load(length_ptr + _string())
    given = (stacked_ptr, start_ptr, length, context_ptr, root)
    if length <= QUARTER:
        _forward_tile(*given, NUM_HEADS, HEAD_WIDTH, QUARTER, BLOCK_D)
    else:
        if length <= HALF:
            _forward_tile(*given, NUM_HEADS, HEAD_WIDTH, HALF, BLOCK_D)
        else:
            _forward_tile(*given, NUM_HEADS, HEAD_WIDTH, BLOCK_L, BLOCK_D)


@triton.jit
@no_type_check
def _backward_tile(
    stacked_ptr,
    gradient_ptr,
    start_ptr,
    length,
    of_stacked_ptr,
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of this program's string and head."""
    rows, exists = _tokens(start_ptr, length, BLOCK_L)
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
def backward_kernel(
    stacked_ptr,  # [P, 3 E]
    gradient_ptr,  # [P, E]
    start_ptr,  # [S]
    length_ptr,  # [S]
    of_stacked_ptr,  # [P, 3 E]
    root,
    NUM_HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    HALF: tl.constexpr,
    QUARTER: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of query, key and value, by tiles as forward."""
    length = tl.load(length_ptr + _string())
    given = (stacked_ptr, gradient_ptr, start_ptr, length, of_stacked_ptr, root)
    if length <= QUARTER:
        _backward_tile(*given, NUM_HEADS, HEAD_WIDTH, QUARTER, BLOCK_D)
    else:
        if length <= HALF:
            _backward_tile(*given, NUM_HEADS, HEAD_WIDTH, HALF, BLOCK_D)
        else:
            _backward_tile(*given, NUM_HEADS, HEAD_WIDTH, BLOCK_L, BLOCK_D)


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
    rows, exists = _tokens(start_ptr, tl.load(length_ptr + _string()), BLOCK_L)
    column = tl.arange(0, BLOCK_D)
    of_query = (_string() * NUM_HEADS + tl.program_id(0)) * HEAD_WIDTH + column
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
def forward_one_kernel(
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
    """Write the context of one query a string."""
    _, _, v, probability, of_query, _, _, _ = _one_query(
        query_ptr, stacked_ptr, start_ptr, length_ptr, root, NUM_HEADS, HEAD_WIDTH, BLOCK_L, BLOCK_D
    )
    context = tl.sum(probability[:, None] * v, 0).to(context_ptr.dtype.element_ty)
    tl.store(context_ptr + of_query, context, mask=tl.arange(0, BLOCK_D) < HEAD_WIDTH)


@triton.jit
@no_type_check
def backward_one_kernel(
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
    """Write the gradients of one query a string, and of keys and values."""
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
