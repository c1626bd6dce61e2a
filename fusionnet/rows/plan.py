"""Which rows belong to which optimizer step, rank and micro-batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class StepPlan:
    """How N rows are assigned to optimizer steps, and a step's to ranks and micro-batches.

    A step has at most `batch_rows` rows, and the steps of an epoch are of equal size (within one
    row): an epoch of 313,236 rows at 8,192 is 39 steps of 8,031 or 8,032 rows, not 38 full ones and
    a small one that would get the same learning rate.

    R are the rows of a step, over all ranks.
    """

    num_rows: int
    batch_rows: int
    num_micro_batches: int  # per rank
    world_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return max(1, -(-self.num_rows // self.batch_rows))

    @property
    def step_sizes(self) -> list[int]:
        """Rows of each step of an epoch."""
        each, larger = divmod(self.num_rows, self.steps_per_epoch)
        return [each + (step < larger) for step in range(self.steps_per_epoch)]

    def steps(self, epoch: int, first: int = 0) -> Iterator[Int[Tensor, " R"]]:
        """Yield the row positions of each step of an epoch (from 0), from step `first` on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        yield from order.split(self.step_sizes)[first:]

    def micro_batches(self, num_rows: int, rank: int) -> list[slice]:
        """Return the micro-batches that one rank reads of a step of so many rows.

        Their sizes differ by at most one row, and may be zero.
        """
        each, larger = divmod(num_rows, self.num_micro_batches * self.world_size)
        edges = [
            part * each + min(part, larger)
            for part in range(self.num_micro_batches * self.world_size + 1)
        ]
        every = [slice(start, stop) for start, stop in pairwise(edges)]
        return every[rank :: self.world_size]
