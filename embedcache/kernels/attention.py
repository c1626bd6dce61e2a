"""Softmax attention of strings that lie end to end, without padding: one program per string and
head, one kernel forward and one backward.

Scores, softmax and its gradient are fp32; what multiplies a narrow matrix is rounded to its type.
Backward computes the probabilities again, so nothing of them is kept. A program holds a whole
string, which is why strings of more than LONGEST tokens go elsewhere, and takes the smallest of
three tiles that holds it; strings come shortest first, and programs of the last ones start first.
Each token belongs to one string: no sum crosses programs, and results repeat bitwise. Where one
query is asked for per string ([CLS] in the last layer), its scores are a vector and need no matrix
products.

Axes: P tokens of S strings; H heads of width D make the hidden width E.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels.attention_kernels import (
    backward_kernel,
    backward_one_kernel,
    forward_kernel,
    forward_one_kernel,
)
from embedcache.kernels.dropout_mask import readable

LONGEST = 128  # tokens of a string; the scores of more would not fit a program's registers


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
        kernel = forward_kernel if query is None else forward_one_kernel
        _launch(kernel, [*given, start, length, context], len(start), *ctx.sizes)
        ctx.save_for_backward(start, length, *given)
        ctx.dtype = stacked.dtype
        return context.to(stacked.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        start, length, *given = ctx.saved_tensors
        found = [torch.empty_like(tensor) for tensor in given]
        kernel = backward_kernel if len(given) == 1 else backward_one_kernel
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
    constants = {"NUM_HEADS": num_heads, "HEAD_WIDTH": head_width, "BLOCK_D": block_d}
    if kernel in (forward_kernel, backward_kernel):
        constants |= {"HALF": max(16, block_l // 2), "QUARTER": max(16, block_l // 4)}
    kernel[(num_heads, num_strings)](
        *pointers,
        math.sqrt(head_width),
        BLOCK_L=block_l,
        **constants,
        num_warps=8 if block_l > 64 else 4,
    )
