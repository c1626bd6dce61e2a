"""What encoding each distinct string once saves, beside encoding every row's.

Axes: S distinct strings of one encoder, whatever columns they stand in.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.text import count_of


class Saving(NamedTuple):
    """Strings and tokens that are encoded for some rows, and those of every row alone."""

    num_rows: int
    strings: float  # distinct ones, as expected of that many rows
    tokens: float
    row_strings: float  # one for each row and string column
    row_tokens: float

    @property
    def ratio(self) -> float:
        """How many times fewer tokens are encoded."""
        return self.row_tokens / self.tokens

    def in_words(self) -> str:
        """Return the saving as a clause: what is encoded, and instead of what."""
        per_row = self.tokens / self.num_rows, self.row_tokens / self.num_rows
        own, all_rows = (f"{each:,.0f}" if each >= 10 else f"{each:.2g}" for each in per_row)
        return (
            f"{count_of(round(self.strings), 'string')} ({round(self.tokens):,} tokens, {own} per"
            f" row) instead of {round(self.row_strings):,} ({round(self.row_tokens):,} tokens,"
            f" {all_rows} per row): {self.ratio:,.{0 if self.ratio >= 100 else 1}f} x"
        )


def presence(num_cells: Int[Tensor, " S"], all_cells: int, drawn: int) -> Float[Tensor, " S"]:
    """Return each string's probability to be among `drawn` random ones of all cells.

    `num_cells` are those that hold it. As if cells were drawn one by one, a string that n of the N
    cells hold is absent from B of them with probability (1 - n / N)^B.
    """
    if drawn >= all_cells:
        return (num_cells > 0).double()
    return 1 - (1 - num_cells.double() / all_cells).pow(drawn)


def saving_of(
    encoders: Iterable[tuple[Int[Tensor, " _S"], Int[Tensor, " _S"]]],
    num_rows: int,
    batch_rows: int,
) -> Saving | None:
    """Return what a random step of so many of the rows saves; None where nothing is encoded.

    `encoders` are (cells that hold each string, tokens of each string) by encoder.
    """
    batch_rows = min(batch_rows, num_rows)
    strings = tokens = row_strings = row_tokens = 0.0
    for num_cells, lengths in encoders:
        share, all_cells = batch_rows / num_rows, int(num_cells.sum())
        present = presence(num_cells, all_cells, round(share * all_cells))
        strings += float(present.sum())
        tokens += float((present * lengths).sum())
        row_strings += share * all_cells
        row_tokens += share * float((num_cells * lengths).sum())
    if tokens == 0:
        return None
    return Saving(batch_rows, strings, tokens, row_strings, row_tokens)


def num_cells_of(string_id: Int[Tensor, "*N"], num_strings: int) -> Int[Tensor, " S"]:
    """Return how often each of S strings is among these ids."""
    return torch.bincount(string_id.cpu().flatten(), minlength=num_strings)
