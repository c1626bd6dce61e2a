"""The tokens of the distinct strings, ragged: no padding until a batch is made."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTable:
    """The tokens of S strings, one after another; string s is `values[offsets[s]:offsets[s + 1]]`.

    `states`, where known, are the hidden states that enter the encoder's first adapted layer, one
    per token (see `prefix`). The offsets stay on the CPU wherever the tokens are: batches are
    planned in Python, and a GPU must not be waited for in every step to learn lengths that never
    change.
    """

    values: Int[Tensor, " total"]
    offsets: Int[Tensor, " S_plus_1"]
    states: Float[Tensor, "total H"] | None = None

    @property
    def num_strings(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, " S"]:
        """Tokens per string, with [CLS] and [SEP]; on the CPU."""
        return self.offsets.diff()

    def take(self, ids: Int[Tensor, " U"]) -> "TokenTable":
        """Return the strings with these ids, in that order; an id may come more than once. Ids on a
        GPU are waited for, ids on the CPU are not.
        """
        ids = ids.cpu()
        places = self.places(ids).to(self.values.device, non_blocking=True)
        lengths = self.lengths[ids]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return TokenTable(
            self.values[places], offsets, None if self.states is None else self.states[places]
        )

    def places(self, ids: Int[Tensor, " U"]) -> Int[Tensor, " _"]:
        """Return where the tokens of these strings are in `values`, string after string; on the
        CPU.
        """
        lengths = self.lengths[ids]
        ends = lengths.cumsum(0)
        within = torch.arange(int(ends[-1]) if len(ids) else 0) - (
            ends - lengths
        ).repeat_interleave(lengths)
        return self.offsets[:-1][ids].repeat_interleave(lengths) + within

    def padded(self, length: int | None = None) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
        """Return (ids, mask), padded with 0 to `length` or to the longest string; the padding's id
        is irrelevant where the mask is used.
        """
        places, mask = self._padded_places(length)
        return self.values[places].long() * mask, mask

    def padded_states(self, length: int | None = None) -> Float[Tensor, "S L H"]:
        """Return the states where `padded` puts their tokens, zeros elsewhere."""
        assert self.states is not None
        places, mask = self._padded_places(length)
        return self.states[places] * mask.unsqueeze(2)

    def to(self, device: torch.device | str) -> "TokenTable":
        """Return the table with its tokens and states on a device."""
        return TokenTable(
            self.values.to(device),
            self.offsets,
            None if self.states is None else self.states.to(device),
        )

    def _padded_places(self, length: int | None) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
        """Return where in `values` each token of the padded batch is (padding: anywhere), and which
        are tokens; made on the CPU, then moved.
        """
        lengths = self.lengths
        longest = int(lengths.max()) if self.num_strings else 0
        assert length is None or length >= longest, (
            f"cannot pad strings of {longest} tokens to {length}"
        )
        within = torch.arange(longest if length is None else length)
        mask = within < lengths.unsqueeze(1)
        places = torch.where(mask, self.offsets[:-1].unsqueeze(1) + within, 0)
        device = self.values.device
        return places.to(device, non_blocking=True), mask.to(device, non_blocking=True)
