"""Which strings share a batch: sorted by length, so that padding costs least."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

# what one more batch costs beside its tokens; at polyBERT's size 16 to 128 are alike
# (benchmarks/results/encoder.md)
BATCH_OVERHEAD_TOKENS = 48
# bounds activations: about 0.9 MB per token with graph at polyBERT's size
MAX_BATCH_TOKENS = 16_384


def length_batches(lengths: Int[Tensor, " S"], max_tokens: int) -> list[Int[Tensor, " _U"]]:
    """Return batches of string numbers, shortest strings first, of the least total cost.

    A batch of n strings, the longest of L tokens, costs n L + BATCH_OVERHEAD_TOKENS and holds at
    most `max_tokens` (or one string). Distinct lengths are few, so a dynamic programme over them is
    exact up to the splitting of equal lengths. The batches are on the CPU.
    """
    return list(_length_batches(tuple(lengths.tolist()), max_tokens))


@lru_cache(maxsize=64)  # steps encode the same strings again and again
def _length_batches(lengths: tuple[int, ...], max_tokens: int) -> tuple[Int[Tensor, " _U"], ...]:
    """Return the batches of `length_batches`: runs of the distinct lengths, shortest first.

    `costs[k]` is the least cost of the strings of the k shortest lengths, and `begins[k]` the first
    length of the last run of that optimum.
    """
    length_of = torch.tensor(lengths, dtype=torch.int64)
    order = length_of.argsort(stable=True)
    distinct, counts = length_of[order].unique_consecutive(return_counts=True)
    longest = distinct.tolist()
    offsets = [0, *counts.cumsum(0).tolist()]  # strings that are shorter than the k-th length
    costs = [0.0]
    begins = [0]
    for end in range(1, len(offsets)):
        length = longest[end - 1]
        candidates = []
        for begin in range(end):
            num = offsets[end] - offsets[begin]
            num_batches = -(-num // max(1, max_tokens // length))
            overhead = BATCH_OVERHEAD_TOKENS * num_batches
            candidates.append(costs[begin] + num * length + overhead)
        costs.append(min(candidates))
        begins.append(candidates.index(costs[end]))
    batches: list[Int[Tensor, " _U"]] = []
    end = len(longest)
    while end > 0:
        run = order[offsets[begins[end]] : offsets[end]]
        batches.extend(reversed(run.split(max(1, max_tokens // longest[end - 1]))))
        end = begins[end]
    return tuple(batches[::-1])


def batches_of_each_pass(
    lengths: Int[Tensor, " S"], batches: Sequence[Int[Tensor, " _U"]]
) -> list[list[Int[Tensor, " _U"]]]:
    """Return consecutive batches joined, as many as have MAX_BATCH_TOKENS tokens between them.

    The batches of one pass share all of the encoder's work but attention.
    """
    passes: list[list[Int[Tensor, " _U"]]] = []
    num_held = 0  # tokens in the last pass
    for ids in batches:
        num_tokens = int(lengths[ids].sum())
        if not passes or num_held + num_tokens > MAX_BATCH_TOKENS:
            passes.append([])
            num_held = 0
        passes[-1].append(ids)
        num_held += num_tokens
    return passes
