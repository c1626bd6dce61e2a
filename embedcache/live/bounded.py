"""Encoding any number of strings with graph in bounded memory: batches that fit, each run twice if
need be.

What limits the number of strings of a step is not their vectors but the activations that their
backward pass needs. Where all of them fit into the memory budget they are kept. Where they do not,
each batch is encoded without keeping anything, and encoded again, with its gradient at hand, when
the backward pass reaches it: GradCache's two passes (Gao et al. 2021), which for one encoder are
`torch.utils.checkpoint` per batch. The random state is replayed, so that both passes drop the same
activations, and each second pass looks whether it is; autograd still sees one graph, so every
parameter gets its gradient once, as engines that reduce in hooks expect.

What a token costs depends on the architecture, its adapters and the precision, so it is measured:
bytes saved by autograd in two small passes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedcache.encoder.batching import length_batches
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import UnfinishedStepError
from embedcache.kernels.seeds import seeds_drawn_at_once

DEFAULT_CPU_BYTES = 4 << 30
DEFAULT_GPU_SHARE = 0.5  # of the memory that is free when the first step begins
_PROBES = (1, 3)  # strings in the two passes that tell what a token costs from what a pass costs


class Budget(NamedTuple):
    """What fits into memory."""

    max_tokens: int  # padded tokens that may have their activations in memory at a time
    bytes_per_token: float  # measured


def encode_bounded(
    encoder: StringEncoder, tokens: TokenTable, max_tokens: int
) -> Float[Tensor, "S E"]:
    """Return the vectors of all strings with graph, with a bound on the activations in memory.

    They are those of at most `max_tokens` padded tokens (or one string) at a time. With everything
    within the budget this is `encoder(tokens)`. The values and gradients are those of the same
    batches without the bound.
    """
    needs_graph = tokens.num_strings > 0 and torch.is_grad_enabled()
    if not needs_graph or padded_tokens(tokens, max_tokens) <= max_tokens:
        return encoder(tokens)
    batches = length_batches(tokens.lengths, max_tokens)
    vectors = [
        checkpoint(
            _EncodedTwice(encoder, tokens.take(ids)), use_reentrant=False, preserve_rng_state=True
        )
        for ids in batches
    ]
    return torch.cat(vectors)[torch.cat(batches).argsort()]


class _EncodedTwice:
    """Some strings' vectors, in passes that the generator's state alone repeats."""

    def __init__(self, encoder: StringEncoder, tokens: TokenTable) -> None:
        self._encoder, self._tokens = encoder, tokens
        self._begun_at: Tensor | None = None  # the generator's state before the first pass

    def __call__(self) -> Float[Tensor, "S E"]:
        """Return the vectors; raises UnfinishedStepError if the second pass would drop others."""
        device = self._tokens.values.device
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        if self._begun_at is None:
            self._begun_at = state
        elif not torch.equal(self._begun_at, state):
            raise UnfinishedStepError(
                "the second pass over a batch of strings begins at another random state than the"
                " first: its dropout masks would be others, and the gradient wrong"
            )
        with seeds_drawn_at_once(0, device):
            return self._encoder(self._tokens)


def padded_tokens(tokens: TokenTable, max_tokens: int) -> int:
    """Return the tokens, padding included, that the strings have in batches of `max_tokens`."""
    return sum(
        len(ids) * int(tokens.lengths[ids].max())
        for ids in length_batches(tokens.lengths, max_tokens)
    )


def measure_budget(encoder: StringEncoder, tokens: TokenTable, budget_bytes: int | None) -> Budget:
    """Return how many tokens fit into `budget_bytes`; call it as encoding will be called.

    None stands for DEFAULT_CPU_BYTES, or on a GPU for DEFAULT_GPU_SHARE of its free memory. The
    longest string is measured, whose attention costs most per token. The random state is left as it
    was.
    """
    device = tokens.values.device
    longest = tokens.lengths.argmax().reshape(1)
    num_tokens = int(tokens.lengths[longest])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), seeds_drawn_at_once(0, device):
        few, many = (_saved_bytes(encoder, tokens.take(longest.repeat(num))) for num in _PROBES)
    per_token = max(1.0, (many - few) / ((_PROBES[1] - _PROBES[0]) * num_tokens))
    if budget_bytes is None:
        budget_bytes = DEFAULT_CPU_BYTES
        if device.type == "cuda":
            budget_bytes = int(DEFAULT_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return Budget(max(1, int(budget_bytes / per_token)), per_token)


def _saved_bytes(encoder: StringEncoder, tokens: TokenTable) -> int:
    """Return the bytes that autograd keeps for the backward pass of one encoder pass.

    Weights, which are there anyway, do not count.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        # Holding it keeps its address from being used again. Detached: a saved output that knows
        # its graph would keep the graph, and the graph it, for ever.
        detached = saved.detach()
        kept.setdefault(saved.untyped_storage().data_ptr(), detached)
        return detached

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        encoder(tokens)
    return sum(
        saved.untyped_storage().nbytes()
        for address, saved in kept.items()
        if address not in weights
    )
