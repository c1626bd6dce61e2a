"""Encoding shared by ranks: each encodes its share of a step's strings, and all get all vectors,
differentiably.

The strings are sorted by length and assigned to the ranks in turn, so that every rank gets the same
number (within one) of like lengths, hence the same work. The backward pass of the gathering adds up
the gradients of a string from all ranks' rows and gives the sum to the rank that encoded it. Then
each rank's encoder gradient is that of its strings for the rows of all ranks, and averaging
gradients over ranks, as DDP and ZeRO do, gives what averaging gives when every rank encodes
everything.

A rank without strings (fewer strings than ranks) encodes one of another rank's and uses nothing of
it: its parameters get zero gradients rather than none, since an engine that waits for a parameter's
gradient on every rank would wait forever.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.kernels.seeds import seed_draws, seeds_drawn_at_once
from embedcache.live.bounded import encode_bounded


def distinct_of_all_ranks(
    string_id: Int[Tensor, " B"], num_strings: int, group: dist.ProcessGroup
) -> Int[Tensor, " U"]:
    """Return the sorted ids, below `num_strings`, of the rows of all ranks; collective."""
    present = torch.zeros(num_strings, dtype=torch.bool, device=string_id.device)
    present[string_id] = True
    votes = present.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=group)
    return votes.bool().nonzero().squeeze(1)


def encode_shared(
    encoder: StringEncoder, tokens: TokenTable, max_tokens: int, group: dist.ProcessGroup
) -> Float[Tensor, "U E"]:
    """Encode this rank's share of the strings, and return the vectors of all; collective.

    `max_tokens` bounds the activations in memory (see `bounded`). Each rank has dropout of its own.
    """
    rank = dist.get_rank(group)
    shares = assign_strings(tokens.lengths, dist.get_world_size(group))
    own, num_own = tokens_of_rank(tokens, shares, rank)
    device = tokens.values.device
    seed = int(torch.randint(2**62, ()))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), seeds_drawn_at_once(0, device):
        seed_draws(seed + rank, device)
        vectors = encode_bounded(encoder, own, max_tokens)[:num_own]
    return gather_vectors(vectors, shares, group)


def assign_strings(lengths: Int[Tensor, " U"], num_ranks: int) -> list[Int[Tensor, " _K"]]:
    """Return the share of each rank: the numbers of its K strings."""
    order = lengths.argsort(stable=True, descending=True)
    return [order[rank::num_ranks] for rank in range(num_ranks)]


def tokens_of_rank(
    tokens: TokenTable, shares: list[Int[Tensor, " _K"]], rank: int
) -> tuple[TokenTable, int]:
    """Return the tokens that a rank encodes, and how many of the resulting vectors count.

    All count, or none where the rank has no strings.
    """
    own = shares[rank]
    return tokens.take(own if len(own) else shares[0][:1]), len(own)


def gather_vectors(
    own: Float[Tensor, "K E"], shares: list[Int[Tensor, " _K"]], group: dist.ProcessGroup
) -> Float[Tensor, "U E"]:
    """Return the vectors of all strings in their order on every rank, from each rank's K own.

    Collective, forward and backward.
    """
    gathered = _Gather.apply(own, [len(share) for share in shares], group)
    return gathered[torch.cat(shares).argsort()]


def average_gradients(parameters: list[torch.nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replace the gradients by their mean over ranks, as DDP does, in one message; collective."""
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    means = flat.split([gradient.numel() for gradient in gradients])
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean.view_as(parameter).clone()


class _Gather(torch.autograd.Function):
    """All ranks' vectors one after another; backwards, a rank's own get the sum over ranks."""

    @staticmethod
    def forward(
        ctx: Any, own: Float[Tensor, "K E"], sizes: list[int], group: dist.ProcessGroup
    ) -> Float[Tensor, "U E"]:
        ctx.sizes = sizes
        ctx.group = group
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        wholes = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(wholes, padded, group=group)
        return torch.cat([whole[:size] for whole, size in zip(wholes, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "U E"]
    ) -> tuple[Float[Tensor, "K E"], None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        # gloo has no reduce-scatter; U x E numbers are few beside the encoder's work on U strings
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.sizes)[dist.get_rank(ctx.group)], None, None
