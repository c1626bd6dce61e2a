"""The tokens of the distinct strings, end to end: no padding until a batch is made."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTable:
    """The P tokens of S strings, end to end: string s is `values[offsets[s]:offsets[s + 1]]`.

    `states`, where given, are the hidden states that enter the encoder's first adapted layer, one
    per token (see `prefix`). The offsets stay on the CPU wherever the tokens are: batches are
    planned in Python, and a GPU must not be waited for in every step to learn lengths that never
    change.
    """

    values: Int[Tensor, " P"]
    offsets: Int[Tensor, " S_plus_1"]
    states: Float[Tensor, "P E"] | None = None

    @property
    def num_strings(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, " S"]:
        """Tokens per string, with [CLS] and [SEP]; on the CPU."""
        return self.offsets.diff()

    def take(self, ids: Int[Tensor, " U"]) -> "TokenTable":
        """Return the strings with these ids, in that order; an id may come more than once.

        Ids on a GPU are waited for, ids on the CPU are not.
        """
        ids = ids.cpu()
        index = self.token_index(ids).to(self.values.device, non_blocking=True)
        states = None if self.states is None else self.states[index]
        return TokenTable(self.values[index], offsets_of(self.lengths[ids]), states)

    def token_index(self, ids: Int[Tensor, " U"]) -> Int[Tensor, " P"]:
        """Return where the P tokens of these strings are in `values`, string after string.

        The index is on the CPU, as the ids must be.
        """
        lengths = self.lengths[ids]
        starts = offsets_of(lengths)
        within = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)
        return self.offsets[:-1][ids].repeat_interleave(lengths) + within

    def padded(
        self, length: int | None = None, pad_id: int = 0
    ) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
        """Return (ids, mask), padded to `length` or to the longest string."""
        index, mask = self._padded_index(length)
        return torch.where(mask, self.values[index].long(), pad_id), mask

    def padded_states(self, length: int | None = None) -> Float[Tensor, "S L E"]:
        """Return the states where `padded` puts their tokens, zeros elsewhere."""
        assert self.states is not None
        index, mask = self._padded_index(length)
        return self.states[index] * mask.unsqueeze(2)

    def to(self, device: torch.device | str) -> "TokenTable":
        """Return the table with its tokens and states on a device."""
        states = None if self.states is None else self.states.to(device)
        return TokenTable(self.values.to(device), self.offsets, states)

    def _padded_index(self, length: int | None) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
        """Return the index in `values` of each slot of the padded batch, and which are tokens.

        Slots of padding have the index 0. Both are made on the CPU, then moved.
        """
        longest = int(self.lengths.max()) if self.num_strings else 0
        assert length is None or length >= longest, (
            f"cannot pad strings of {longest} tokens to {length}"
        )
        within = torch.arange(longest if length is None else length)
        mask = within < self.lengths.unsqueeze(1)
        index = torch.where(mask, self.offsets[:-1].unsqueeze(1) + within, 0)
        device = self.values.device
        return index.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def no_tokens(num_strings: int) -> TokenTable:
    """Return the tokens of strings that no encoder reads."""
    edges = torch.zeros(num_strings + 1, dtype=torch.int64)
    return TokenTable(torch.zeros(0, dtype=torch.int64), edges)


def offsets_of(lengths: Int[Tensor, " S"]) -> Int[Tensor, " S_plus_1"]:
    """Return where each of the strings that lie end to end begins, and where the last one ends."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def shared_strings(
    texts: Sequence[Sequence[str]], tables: Sequence[TokenTable]
) -> tuple[TokenTable, list[Int[Tensor, " _S"]]]:
    """Return the tokens of the distinct texts of all columns, and each column's ids among them.

    Texts come in the order in which columns have them; equal texts must have equal tokens.
    """
    id_of_text: dict[str, int] = {}
    first: list[int] = []  # of each distinct text: where it is among all columns' texts
    ids = []
    for position, text in enumerate(text for column in texts for text in column):
        if text not in id_of_text:
            id_of_text[text] = len(first)
            first.append(position)
        ids.append(id_of_text[text])
    states = [table.states for table in tables if table.states is not None]
    joined = TokenTable(
        values=torch.cat([table.values for table in tables]),
        offsets=offsets_of(torch.cat([table.lengths for table in tables])),
        states=torch.cat(states) if states else None,
    )
    of_columns = torch.tensor(ids, dtype=torch.int64).split([len(column) for column in texts])
    return joined.take(torch.tensor(first, dtype=torch.int64)), list(of_columns)
