"""Attention of strings that lie end to end: padded here and nowhere else, in groups of like length,
forward and backward without intermediate graphs. On a GPU a kernel takes them as they lie.

Scores are products in the compute dtype, softmax and its gradient are fp32. Measured on 2 cores in
bf16: torch's fused attention takes 3 to 6 times as long on a CPU, and the same steps under autograd
1.3 times as long. Memory is that of the plain model, the probabilities of every head.

Axes of this file: P tokens of S strings lie end to end; a group has K of the strings, padded to L.
H heads of width D make the hidden width E; KH are the K H heads of a group, one under another; C
are columns side by side: query, key and value (3 E), key and value (2 E), or one of them (E). Q are
the queries of a string: L, or 1 where only its [CLS] is asked for.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.kernels import HAS_TRITON, has_kernels

if HAS_TRITON:
    from embedcache.kernels import attention as kernels


class Padding(NamedTuple):
    """How the P tokens of a group lie in its flattened padded batch of K L slots."""

    slot: Int[Tensor, " P"]  # of each token
    # the token of each slot; where there is none, the first of its string
    token: Int[Tensor, " K*L"]
    empty: Int[Tensor, " num_empty"]  # slots without a token
    bias: Float[Tensor, "K 1 1 L"]  # 0 for tokens, -inf for empty slots


class Group(NamedTuple):
    """K strings of like length, padded to the longest, L, for attention alone."""

    strings: slice  # among all strings
    tokens: slice  # among all tokens
    num_strings: int  # K
    longest: int  # L
    length: Int[Tensor, " K"]
    padding: Padding | None  # None: all strings are equally long


class Packing(NamedTuple):
    """Strings end to end, shortest first, in groups; a function of their lengths alone."""

    groups: tuple[Group, ...]
    position: Int[Tensor, " P"]  # of each token in its string
    cls: Int[Tensor, " S"]  # each string's [CLS] among the P tokens, its first one
    length: Int[Tensor, " S"]
    longest: int


@lru_cache(maxsize=64)  # steps encode the same strings again and again
def packing_of(lengths: tuple[tuple[int, ...], ...], device: torch.device) -> Packing:
    """Return the packing of groups of strings of these lengths.

    It is made on the CPU and only copied to the device, so that no step waits for the device.
    """
    groups: list[Group] = []
    first_string = first_token = 0
    for of_group in lengths:
        groups.append(_group(of_group, first_string, first_token, device))
        first_string += len(of_group)
        first_token += sum(of_group)
    length = torch.tensor([each for of_group in lengths for each in of_group])
    cls = length.cumsum(0) - length
    position = torch.arange(first_token) - cls.repeat_interleave(length)
    return Packing(
        groups=tuple(groups),
        position=position.to(device, non_blocking=True),
        cls=cls.to(device, non_blocking=True),
        length=length.to(device, non_blocking=True),
        longest=int(length.max()),
    )


def _group(
    lengths: tuple[int, ...], first_string: int, first_token: int, device: torch.device
) -> Group:
    """Return the group of strings of these lengths, the first of which is `first_string`."""
    num_strings = len(lengths)
    num_tokens = sum(lengths)
    longest = max(lengths)
    length = torch.tensor(lengths)
    return Group(
        strings=slice(first_string, first_string + num_strings),
        tokens=slice(first_token, first_token + num_tokens),
        num_strings=num_strings,
        longest=longest,
        length=length.to(device, non_blocking=True),
        padding=_padding(length, device) if num_tokens < num_strings * longest else None,
    )


def _padding(length: Int[Tensor, " K"], device: torch.device) -> Padding:
    """Return how strings of these lengths are padded to the longest."""
    position = torch.arange(int(length.max()))
    inside = position < length.unsqueeze(1)  # [K, L]
    start = length.cumsum(0) - length
    token = start.unsqueeze(1) + torch.where(inside, position, 0)  # [K, L]
    bias = torch.zeros(inside.shape).masked_fill(~inside, -torch.inf)
    return Padding(
        slot=inside.flatten().nonzero().squeeze(1).to(device, non_blocking=True),
        token=token.flatten().to(device, non_blocking=True),
        empty=(~inside).flatten().nonzero().squeeze(1).to(device, non_blocking=True),
        bias=bias[:, None, None].to(device, non_blocking=True),
    )


def pad(x: Float[Tensor, "P C"], group: Group) -> Float[Tensor, "K L C"]:
    """Return the tokens of each string of a group apart, zeros after its end."""
    apart = _spread(x, group)
    if group.padding is not None:
        apart.view(-1, apart.shape[2]).index_fill_(0, group.padding.empty, 0)
    return apart


def _spread(x: Float[Tensor, "P C"], group: Group) -> Float[Tensor, "K L C"]:
    """Return the tokens of each string of a group apart, its first one repeated after its end."""
    if group.padding is not None:
        x = x.index_select(0, group.padding.token)
    return x.view(group.num_strings, group.longest, -1)


def attend(
    query: Float[Tensor, "S E"] | None,
    stacked: Float[Tensor, "P C"],
    packing: Packing,
    num_heads: int,
) -> Float[Tensor, "num_queries E"]:
    """Return the context of every token, or of one query a string where `query` is given.

    `stacked` has query, key and value side by side, or key and value where `query` is given.
    """
    if _fits_kernel(stacked, packing):
        of_strings = (packing.cls, packing.length, packing.longest)
        return kernels.attention(query, stacked, *of_strings, num_heads)
    return _Attention.apply(query, stacked, packing, num_heads)


def _fits_kernel(stacked: Float[Tensor, "P C"], packing: Packing) -> bool:
    """Return whether the kernel takes these strings."""
    wide = stacked.dtype == torch.float64
    return has_kernels(stacked) and not wide and packing.longest <= kernels.LONGEST


class _Attention(torch.autograd.Function):
    """Softmax attention; what the backward pass needs are q, k, v and the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "S E"] | None,
        stacked: Float[Tensor, "P C"],
        packing: Packing,
        num_heads: int,
    ) -> Float[Tensor, "num_queries E"]:
        num_stacked = 3 if query is None else 2
        num_queries = len(stacked if query is None else query)
        context = stacked.new_empty(num_queries, stacked.shape[1] // num_stacked)
        saved = []
        for group in packing.groups:
            # Empty slots need not be zero: as keys they have no weight, as queries nobody reads
            # them, and their gradient is zero.
            heads = _split_heads(_spread(stacked[group.tokens], group), num_stacked, num_heads)
            if query is None:
                q, k, v = heads.unbind(0)  # [KH, L, D] each
            else:
                k, v = heads.unbind(0)
                q = query[group.strings].reshape(len(k), 1, -1)  # [KH, 1, D]
            probability = _softmax(q, k, group)
            of_heads = torch.bmm(probability.to(v.dtype), v)  # [KH, Q, D]
            if query is None:
                _write_tokens(context, of_heads.unsqueeze(0), group)
            else:
                context[group.strings] = of_heads.reshape(group.num_strings, -1)
            saved += [q, k, v, probability]
        ctx.save_for_backward(*saved)
        ctx.packing = packing
        ctx.num_heads = num_heads
        ctx.one_query = query is not None
        ctx.stacked_shape = stacked.shape
        return context

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "num_queries E"]
    ) -> tuple[Float[Tensor, "S E"] | None, Float[Tensor, "P C"], None, None]:
        of_stacked = gradient.new_empty(ctx.stacked_shape)
        of_query = torch.empty_like(gradient) if ctx.one_query else None
        saved = iter(ctx.saved_tensors)
        for group in ctx.packing.groups:
            q, k, v, probability = (next(saved) for _ in range(4))
            if ctx.one_query:
                of_context = gradient[group.strings].reshape(q.shape)
            else:
                of_tokens = pad(gradient[group.tokens], group)
                of_context = _split_heads(of_tokens, 1, ctx.num_heads).squeeze(0)
            of_score = torch._softmax_backward_data(
                _wide(torch.bmm(of_context, v.transpose(1, 2))), probability, 2, probability.dtype
            )
            of_score = of_score.div_(_root(q.shape[2])).to(q.dtype)  # [KH, Q, L]
            # [of q, of k, of v] or [of k, of v]
            of_heads = k.new_empty(2 if ctx.one_query else 3, *k.shape)
            if of_query is None:
                torch.bmm(of_score, k, out=of_heads[0])
            else:
                of_query[group.strings] = torch.bmm(of_score, k).view(group.num_strings, -1)
            torch.bmm(of_score.transpose(1, 2), q, out=of_heads[-2])
            torch.bmm(probability.to(v.dtype).transpose(1, 2), of_context, out=of_heads[-1])
            _write_tokens(of_stacked, of_heads, group)
        return of_query, of_stacked, None, None


def _split_heads(
    x: Float[Tensor, "K L C"], num_stacked: int, num_heads: int
) -> Float[Tensor, "num_stacked KH L D"]:
    """Return the heads of query, key and value (or of what is stacked of them) apart."""
    heads = rearrange(x, "k l (stacked h d) -> stacked (k h) l d", stacked=num_stacked, h=num_heads)
    return heads.contiguous()  # a lone string's would be a view, which bmm reads more slowly


def _write_tokens(
    out: Float[Tensor, "P C"], heads: Float[Tensor, "num_stacked KH L D"], group: Group
) -> None:
    """Write a group's tokens into `out`: heads side by side again, without the padding."""
    rows = rearrange(
        heads, "stacked (k h) l d -> (k l) (stacked h d)", k=group.num_strings
    )  # [K L, C]
    if group.padding is None:
        out[group.tokens] = rows
    else:
        torch.index_select(rows, 0, group.padding.slot, out=out[group.tokens])


def _softmax(
    q: Float[Tensor, "KH Q D"], k: Float[Tensor, "KH L D"], group: Group
) -> Float[Tensor, "KH Q L"]:
    """Return the attention probabilities.

    They stay wide for the backward pass: rounded, they would not add up to 1, and keys' gradients
    are differences.
    """
    scores = _wide(torch.bmm(q, k.transpose(1, 2))).div_(_root(q.shape[2]))
    if group.padding is not None:
        of_strings = scores.view(group.num_strings, -1, *scores.shape[1:])  # [K, H, Q, L]
        of_strings.add_(group.padding.bias)
    return scores.softmax(2)


@lru_cache
def _root(num: int) -> float:
    """Return the square root in fp32, as transformers takes it."""
    return float(torch.tensor(float(num)).sqrt())


def _wide(x: Float[Tensor, "KH Q L"]) -> Float[Tensor, "KH Q L"]:
    """Return x in fp32 (fp64 stays)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
