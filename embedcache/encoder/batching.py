"""Which strings share a batch: sorted by length, so that padding costs least."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

# what one more batch costs beside its tokens; at polyBERT's size 16 to 128 are alike
# (benchmarks/encoder.py)
BATCH_OVERHEAD_TOKENS = 48
# bounds activations: about 0.9 MB per token with graph at polyBERT's size
MAX_BATCH_TOKENS = 16_384


def chunks(
    lengths: Int[Tensor, " S"], batches: Sequence[Int[Tensor, " _"]]
) -> list[list[Int[Tensor, " _"]]]:
    """Return consecutive length batches together, as many as have MAX_BATCH_TOKENS tokens between
    them: they share all work but attention.
    """
    chunks: list[list[Int[Tensor, " _"]]] = []
    held = 0
    for ids in batches:
        num_tokens = int(lengths[ids].sum())
        if not chunks or held + num_tokens > MAX_BATCH_TOKENS:
            chunks.append([])
            held = 0
        chunks[-1].append(ids)
        held += num_tokens
    return chunks


def length_batches(lengths: Int[Tensor, " S"], max_tokens: int) -> list[Int[Tensor, " _"]]:
    """Return batches of string numbers, shortest strings first, of the least total cost; on the
    CPU.

    A batch of n strings, the longest of L tokens, costs n L + BATCH_OVERHEAD_TOKENS and holds at
    most `max_tokens` (or one string). Distinct lengths are few, so a dynamic programme over them is
    exact up to the splitting of equal lengths.
    """
    return list(_length_batches(tuple(lengths.tolist()), max_tokens))


@lru_cache(maxsize=64)  # steps encode the same strings again and again
def _length_batches(lengths: tuple[int, ...], max_tokens: int) -> tuple[Int[Tensor, " _"], ...]:
    length_of = torch.tensor(lengths, dtype=torch.int64)
    order = length_of.argsort(stable=True)
    sizes, counts = length_of[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    longest = sizes.tolist()
    best, first = [0.0] * (len(ends) + 1), [0] * (len(ends) + 1)
    for end in range(1, len(ends) + 1):
        length = longest[end - 1]
        costs = []
        for begin in range(end):
            num = ends[end - 1] - starts[begin]
            num_batches = -(-num // max(1, max_tokens // length))
            costs.append(best[begin] + num * length + BATCH_OVERHEAD_TOKENS * num_batches)
        best[end] = min(costs)
        first[end] = costs.index(best[end])
    batches: list[Int[Tensor, " _"]] = []
    end = len(ends)
    while end > 0:
        block = order[starts[first[end]] : ends[end - 1]]
        batches.extend(reversed(block.split(max(1, max_tokens // longest[end - 1]))))
        end = first[end]
    return tuple(batches[::-1])
