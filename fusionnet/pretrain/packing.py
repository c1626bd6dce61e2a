"""The strings of a step, end to end: batches by tokens, the same for any number of ranks.

A batch is as many whole strings as come to about `batch_tokens` tokens. Which strings these are,
and what of them is masked, follows from the seed and the numbers of epoch and step alone: whoever
goes on from a checkpoint needs no state of a generator. Ranks share a batch: each knows all of it,
and so how many tokens all ranks guess together.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder.batching import MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.deberta.attention import Packing, packing_of
from embedcache.encoder.tokens import TokenTable
from fusionnet.pretrain.masking import Vocabulary, masked

_SEED_STRIDE = 1_000_003  # between the generators of two seeds


class Share(NamedTuple):
    """One rank's strings of a step, P tokens of S strings, and what they are to tell.

    `ranks` are R standardised ranks of each string; NaN where they were not computed.
    """

    values: Int[Tensor, " P"]
    packing: Packing
    places: Int[Tensor, " M"]
    targets: Int[Tensor, " M"]
    ranks: Float[Tensor, "S R"]
    num_targets: int  # of all ranks together, at least 1
    num_ranked: int  # strings with ranks, of all ranks together, at least 1

    def to(self, device: torch.device) -> "Share":
        """Return the share on a device."""
        if device.type == "cpu":
            return self
        lengths = tuple(tuple(group.length.tolist()) for group in self.packing.groups)
        return self._replace(
            values=self.values.to(device),
            packing=packing_of(lengths, device),
            places=self.places.to(device),
            targets=self.targets.to(device),
            ranks=self.ranks.to(device),
        )


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step's masks."""
    return (seed * _SEED_STRIDE + step) * _SEED_STRIDE + 1


def epoch_batches(
    lengths: Int[Tensor, " S"], batch_tokens: int, seed: int, epoch: int
) -> list[Int[Tensor, " _U"]]:
    """Return the strings of each step of an epoch: every string once, in an order of its own.

    Steps have about equally many tokens.
    """
    generator = torch.Generator().manual_seed(seed * _SEED_STRIDE + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    ends = lengths[order].cumsum(0)
    num_steps = max(1, round(int(ends[-1]) / batch_tokens))
    step = (ends - 1) * num_steps // ends[-1]  # of each string, by where it ends
    return list(order.split(step.unique_consecutive(return_counts=True)[1].tolist()))


def share_of(
    tokens: TokenTable,
    ranks: Float[Tensor, "S R"],
    ids: Int[Tensor, " U"],
    vocabulary: Vocabulary,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Share:
    """Return a rank's share of a step's strings `ids`, masked by the seed."""
    taken = tokens.take(ids)
    every = masked(taken.values, vocabulary, torch.Generator().manual_seed(seed))
    own = torch.arange(len(ids))[rank::world_size]
    lengths = taken.lengths
    groups = [own[group] for group in length_batches(lengths[own], MAX_BATCH_TOKENS)]
    order = torch.cat(groups)  # of the own strings among the step's, as they are packed
    index = taken.token_index(order)
    number = torch.full_like(taken.values, -1)  # of each token among the masked ones
    number[every.places] = torch.arange(len(every.places))
    places = (number[index] >= 0).nonzero().squeeze(1)
    of_strings = ranks[ids]
    return Share(
        values=every.values[index],
        packing=packing_of(
            tuple(tuple(lengths[group].tolist()) for group in groups), torch.device("cpu")
        ),
        places=places,
        targets=every.targets[number[index][places]],
        ranks=of_strings[order],
        num_targets=max(1, len(every.targets)),
        num_ranked=max(1, int(of_strings.isfinite().any(1).sum())),
    )
