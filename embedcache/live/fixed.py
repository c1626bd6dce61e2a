"""Strings that every optimizer step encodes, whichever its rows have.

No step then asks the device which strings it has: all shapes and addresses are the same in every
step, as CUDA graphs demand.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder.model import EncodingPlan, StringEncoder
from embedcache.encoder.tokens import TokenTable


@dataclass(frozen=True)
class FixedStrings:
    """U of S strings, planned once."""

    distinct: Int[Tensor, " U"]
    index: Int[Tensor, " S"]  # of each string among them; 0 where it is none of them
    plan: EncodingPlan

    @classmethod
    def of(
        cls, encoder: StringEncoder, tokens: TokenTable, string_id: Int[Tensor, " U"]
    ) -> "FixedStrings":
        """Return these distinct ones of the strings; see `why_not` first."""
        device = tokens.values.device
        plan = encoder.plan(tokens.take(string_id))
        assert plan is not None
        index = torch.zeros(tokens.num_strings, dtype=torch.int64)
        index[string_id.cpu()] = torch.arange(len(string_id))
        return cls(string_id.to(device), index.to(device), encoder.with_frozen_states(plan))

    def encode(self, encoder: StringEncoder) -> Float[Tensor, "U E"]:
        """Return their vectors, with graph."""
        return encoder.encode(self.plan)


def why_not(encoder: StringEncoder, tokens: TokenTable, max_tokens: int) -> str | None:
    """Return what forbids that every step encodes these strings, None where nothing does."""
    if encoder.plan(tokens) is None:
        return "the encoder is not of polyBERT's architecture"
    if len(tokens.values) > max_tokens:
        return (
            f"the {tokens.num_strings:,} strings have {len(tokens.values):,} tokens, and memory is"
            f" for {max_tokens:,} at a time"
        )
    return None
