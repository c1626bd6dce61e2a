"""Attention of strings that lie end to end: padded here and nowhere else, in groups of like length,
forward and backward without intermediate graphs.

Scores are products in the compute dtype, softmax and its gradient are fp32. Measured on 2 cores in
bf16: torch's fused attention takes 3 to 6 times as long on a CPU, and the same steps under autograd
1.3 times as long. Memory is that of the plain model, the probabilities of every head.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class Padding(NamedTuple):
    """How the T tokens of a group lie in its flattened padded batch of S L slots."""

    place: Int[Tensor, " T"]  # the slot of each token
    # the token of each slot; where there is none, the first of its string
    token: Int[Tensor, " S*L"]
    empty: Int[Tensor, " _"]  # slots without a token
    bias: Float[Tensor, "S 1 1 L"]  # 0 for tokens, -inf for empty slots


class Group(NamedTuple):
    """Strings of like length, padded to the longest, L, for attention alone."""

    strings: slice
    tokens: slice
    num: int  # S
    longest: int  # L
    length: Int[Tensor, " S"]
    padding: Padding | None  # None: all strings are equally long


class Packing(NamedTuple):
    """Strings end to end, shortest first, in groups; a function of their lengths alone."""

    groups: tuple[Group, ...]
    position: Int[Tensor, " T"]  # of each token in its string
    first: Int[Tensor, " S"]  # each string's [CLS] among the T tokens


@lru_cache(maxsize=64)  # steps encode the same strings again and again
def packing(lengths: tuple[tuple[int, ...], ...], device: torch.device) -> Packing:
    """Return the packing of groups of strings of these lengths. It is made on the CPU and only
    copied to the device, so that no step waits for the device.
    """
    groups, num_strings, num_tokens = [], 0, 0
    for of_group in lengths:
        longest, num, total = max(of_group), len(of_group), sum(of_group)
        length = torch.tensor(of_group)
        inside = torch.arange(longest) < length.unsqueeze(1)  # [S, L]
        padding = None
        if total < num * longest:
            place, empty = (which.flatten().nonzero().squeeze(1) for which in (inside, ~inside))
            start = length.cumsum(0) - length
            token = (start.unsqueeze(1) + torch.where(inside, torch.arange(longest), 0)).flatten()
            bias = torch.zeros(num, 1, 1, longest).masked_fill(~inside[:, None, None], -torch.inf)
            padding = Padding(
                *(each.to(device, non_blocking=True) for each in (place, token, empty, bias))
            )
        strings, tokens = (
            slice(num_strings, num_strings + num),
            slice(num_tokens, num_tokens + total),
        )
        groups.append(
            Group(strings, tokens, num, longest, length.to(device, non_blocking=True), padding)
        )
        num_strings, num_tokens = strings.stop, tokens.stop
    length = torch.tensor([each for of_group in lengths for each in of_group])
    first = length.cumsum(0) - length
    position = torch.arange(num_tokens) - first.repeat_interleave(length)
    return Packing(
        tuple(groups), position.to(device, non_blocking=True), first.to(device, non_blocking=True)
    )


def pad(x: Float[Tensor, "T C"], group: Group) -> Float[Tensor, "S L C"]:
    """Return the tokens of each string of a group apart, zeros after its end."""
    apart = _spread(x, group)
    if group.padding is not None:
        apart.view(-1, apart.shape[2]).index_fill_(0, group.padding.empty, 0)
    return apart


def _spread(x: Float[Tensor, "T C"], group: Group) -> Float[Tensor, "S L C"]:
    """Return the tokens of each string of a group apart, its first one again and again after its
    end.
    """
    if group.padding is not None:
        x = x.index_select(0, group.padding.token)
    return x.view(group.num, group.longest, -1)


def attend(
    query: Float[Tensor, "S H"] | None,
    stacked: Float[Tensor, "T C"],
    layout: Packing,
    num_heads: int,
) -> Float[Tensor, "_ H"]:
    """Return the context of every token, or of one query a string where `query` is given; `stacked`
    has query, key and value side by side, or key and value.
    """
    return _Attention.apply(query, stacked, layout, num_heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor | None, stacked: Tensor, layout: Packing, num_heads: int
    ) -> Tensor:
        num_parts = 3 if query is None else 2
        width = stacked.shape[1] // num_parts
        context = stacked.new_empty(len(stacked if query is None else query), width)
        saved = []
        for group in layout.groups:
            # Empty slots need not be zero: as keys they have no weight, as queries nobody reads
            # them, and their gradient is zero.
            # [q, k, v] or [k, v], each [S heads, L, D]
            parts = _heads(_spread(stacked[group.tokens], group), num_parts, num_heads)
            if query is not None:
                parts = [query[group.strings].reshape(group.num * num_heads, 1, -1), *parts]
            q, k, v = parts
            probability = _softmax(q, k, group)
            _put(context, torch.bmm(probability.to(v.dtype), v), group, query is not None)
            saved += [q, k, v, probability]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.num_heads, ctx.alone, ctx.shape = (
            layout,
            num_heads,
            query is not None,
            stacked.shape,
        )
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        of_stacked = gradient.new_empty(ctx.shape)
        of_query = torch.empty_like(gradient) if ctx.alone else None
        remaining = iter(ctx.saved_tensors)
        for group in ctx.layout.groups:
            q, k, v, probability = (next(remaining) for _ in range(4))
            if ctx.alone:
                of_context = gradient[group.strings].reshape(q.shape)
            else:
                (of_context,) = _heads(pad(gradient[group.tokens], group), 1, ctx.num_heads)
            of_score = torch._softmax_backward_data(
                _wide(torch.bmm(of_context, v.transpose(1, 2))), probability, 2, probability.dtype
            )
            of_score = of_score.div_(_root(q.shape[2])).to(q.dtype)
            # [of q, of k, of v] or [of k, of v]
            of_parts = k.new_empty(2 if ctx.alone else 3, *k.shape)
            if of_query is None:
                torch.bmm(of_score, k, out=of_parts[0])
            else:
                of_query[group.strings] = torch.bmm(of_score, k).view(group.num, -1)
            torch.bmm(of_score.transpose(1, 2), q, out=of_parts[-2])
            torch.bmm(probability.to(v.dtype).transpose(1, 2), of_context, out=of_parts[-1])
            _put(of_stacked, of_parts, group, False)
        return of_query, of_stacked, None, None


def _heads(
    x: Float[Tensor, "S L C"], num_parts: int, num_heads: int
) -> list[Float[Tensor, "_ L D"]]:
    """Return each part's heads apart."""
    num, longest, _ = x.shape
    apart = x.view(num, longest, num_parts, num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
    return list(apart.flatten(1, 2).unbind(0))


def _put(
    out: Float[Tensor, "_ C"], heads: Float[Tensor, "*parts _ _ D"], group: Group, alone: bool
) -> None:
    """Write a group's rows, heads side by side again, into `out`, without the padding."""
    if alone:
        out[group.strings] = heads.reshape(group.num, -1)
        return
    num_heads = heads.shape[-3] // group.num
    rows = (
        heads.view(-1, group.num, num_heads, group.longest, heads.shape[-1])
        .permute(1, 3, 0, 2, 4)
        .reshape(group.num * group.longest, -1)
    )
    if group.padding is None:
        out[group.tokens] = rows
    else:
        torch.index_select(rows, 0, group.padding.place, out=out[group.tokens])


def _softmax(
    q: Float[Tensor, "_ Q D"], k: Float[Tensor, "_ L D"], group: Group
) -> Float[Tensor, "_ Q L"]:
    """Return the attention probabilities. They stay wide for the backward pass: rounded, they would
    not add up to 1, and keys' gradients are differences.
    """
    scores = _wide(torch.bmm(q, k.transpose(1, 2))).div_(_root(q.shape[2]))
    if group.padding is not None:
        scores.view(group.num, -1, *scores.shape[1:]).add_(group.padding.bias)
    return scores.softmax(2)


@lru_cache
def _root(num: int) -> float:
    """Return the square root in fp32, as transformers takes it."""
    return float(torch.tensor(float(num)).sqrt())


def _wide(x: Tensor) -> Tensor:
    """Return x in fp32 (fp64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
