"""What the steps of an epoch were given to read, and what they read: counted on the device.

A wrong row, a row read twice or never, or a row that reads another string's vector leaves a loss
that looks like any other. So every row that belongs to a step is counted, with a code of its row
number and its strings; and every row that a micro-batch hands to the network is counted again, with
the strings whose vectors its indices point at, as the encoder named them. At the end of an epoch
both counts must be the plan's, and both sums of codes equal, over all ranks. Strings have random
codes of 64 bits, and a row's number multiplies them, so that two rows that exchange their strings
do not cancel: what a fault leaves unchanged it would have to meet by chance, one in 2^63.

Nothing asks the device before the epoch ends: the sums are its integers, and wrap.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from embedcache.errors import ProofError
from embedcache.live.sources import RowVectors
from fusionnet.rows.tensors import FILLING, RowTable
from fusionnet.train.world import World


class Tally:
    """Rows due and rows read since the epoch, or the rest of it, began."""

    def __init__(self, num_strings: Sequence[int], device: torch.device) -> None:
        """`num_strings` has one number per string column."""
        generator = torch.Generator().manual_seed(0)
        self._codes = [
            torch.randint(-(2**63), 2**63 - 1, (num,), generator=generator).to(device)
            for num in num_strings
        ]
        self._due = torch.zeros(2, dtype=torch.int64, device=device)  # rows, and their codes
        self._read = torch.zeros_like(self._due)

    def begin(self) -> None:
        """Count from nothing."""
        self._due.zero_()
        self._read.zero_()

    def expect(self, rows: RowTable) -> None:
        """Count the rows of one step, of all ranks; FILLING is none."""
        self._due += self.count(rows, list(rows.string_id.unbind(1)))

    def note(self, batch: RowTable, read: Sequence[RowVectors]) -> None:
        """Count the rows of one micro-batch by the vectors that it reads, one per column."""
        strings = [each.string_id.index_select(0, each.vector_index) for each in read]
        self._read += self.count(batch, strings)

    def count(self, rows: RowTable, strings: Sequence[Int[Tensor, " N"]]) -> Int[Tensor, " two"]:
        """Return how many rows there are, and the sum of their codes."""
        code = torch.zeros_like(rows.row)
        for codes, string_id in zip(self._codes, strings, strict=True):
            # another factor for each column, so that columns that exchange strings do not cancel
            code = 3 * code + codes.index_select(0, string_id)
        is_row = rows.row != FILLING
        code = torch.where(is_row, code * (2 * rows.row + 1), 0)
        return torch.stack([is_row.sum(), code.sum()])

    def check(self, num_rows: int, world: World, every_row: RowTable | None = None) -> None:
        """Raise ProofError unless this many rows were due, and these were read (collective).

        `every_row`, where given, are the rows that were due, each once, in whatever order.
        """
        read = world.sum(self._read).tolist()
        due = self._due.tolist()
        found = []
        if due[0] != num_rows:
            found.append(f"{due[0]:,} rows came of {num_rows:,}")
        if read[0] != num_rows:
            found.append(f"{read[0]:,} rows were read of {num_rows:,}")
        if read[1] != due[1]:
            found.append("not every row read the vectors of its own strings")
        if every_row is not None:
            whole = self.count(every_row, list(every_row.string_id.unbind(1))).tolist()
            if due != whole:
                found.append("the rows that came are not the train rows, each once")
        if found:
            raise ProofError(
                f"the steps of this epoch did not read what they should: {'; '.join(found)}."
                " Nothing was published of it. This is a fault of the software or the machine, not"
                " of your data: please report it with the run's config"
            )
