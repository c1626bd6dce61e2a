"""Encoding shared by ranks: each encodes its part of a step's strings, and all get all vectors,
differentiably.

The strings are dealt by length like cards, so that every rank gets the same number (within one) of
like lengths, hence the same work. The backward pass of the gathering adds up what all ranks' rows
say of a string and hands the sum to the rank that encoded it; then each rank's encoder gradient is
that of its strings for the rows of all ranks, and averaging gradients over ranks, as DDP and ZeRO
do, gives what averaging gives when every rank encodes everything.

A rank without strings (fewer strings than ranks) encodes one of the others' and uses nothing of it:
its parameters get zero gradients rather than none, since an engine that waits for a parameter's
gradient on every rank would wait forever.
"""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from embedcache.encoder.tokens import TokenTable


def assign_strings(lengths: Int[Tensor, " U"], num_ranks: int) -> list[Int[Tensor, " _"]]:
    """Return the string numbers of each rank."""
    order = lengths.argsort(stable=True, descending=True)
    return [order[rank::num_ranks] for rank in range(num_ranks)]


def own_strings(
    tokens: TokenTable, parts: list[Int[Tensor, " _"]], rank: int
) -> tuple[TokenTable, int]:
    """Return the tokens that a rank encodes, and how many of the resulting vectors count: all, or
    none where it has no strings.
    """
    own = parts[rank]
    return tokens.take(own if len(own) else parts[0][:1]), len(own)


def gather_vectors(
    own: Float[Tensor, "_ E"], parts: list[Int[Tensor, " _"]], group: dist.ProcessGroup
) -> Float[Tensor, "U E"]:
    """Return the vectors of all strings in their order on every rank; collective, forward and
    backward.
    """
    gathered = _Gather.apply(own, [len(part) for part in parts], group)
    return gathered[torch.cat(parts).argsort()]


def union(present: Bool[Tensor, " S"], group: dist.ProcessGroup) -> Bool[Tensor, " S"]:
    """Return which strings any rank has; collective."""
    votes = present.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=group)
    return votes.bool()


def average_gradients(parameters: list[torch.nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace the gradients by their mean over ranks, as DDP does, in one message; collective."""
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for parameter, mean in zip(
        parameters, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        parameter.grad = mean.view_as(parameter).clone()


class _Gather(torch.autograd.Function):
    """All ranks' rows one after another; backwards, each rank's rows get the sum of their gradients
    over ranks.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, own: Tensor, sizes: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        wholes = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(wholes, padded, group=group)
        return torch.cat([whole[:size] for whole, size in zip(wholes, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        # gloo has no reduce-scatter; U x E numbers are few beside the encoder's work on U strings
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.sizes)[dist.get_rank(ctx.group)], None, None
