"""The rows of a split as a source of steps, and the source that holds them all in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from fusionnet.rows.plan import StepPlan
from fusionnet.rows.tensors import RowTable


@runtime_checkable
class RowSource(Protocol):
    """The rows of one split, wherever they are."""

    @property
    def num_rows(self) -> int:
        """N."""

    @property
    def order(self) -> str:
        """What decides the order of an epoch, beside seed and epoch.

        A run resumes inside an epoch only where it is the same.
        """

    def steps(self, plan: StepPlan, epoch: int, first: int = 0) -> Iterator[RowTable]:
        """Yield all rows of each step of an epoch (numbered from 0), from step `first` on."""

    def prepare(self, plan: StepPlan, epoch: int) -> None:
        """Start reading what the epoch's first step needs."""

    def blocks(self, rank: int, world_size: int) -> Iterator[RowTable]:
        """Yield one rank's share of the rows, in table order; ranks' shares follow one another."""

    def shares(self, world_size: int) -> list[int]:
        """Return how many rows each rank's share has."""


@dataclass(frozen=True)
class ResidentRows:
    """A split whose rows are all in memory: a step is an index into them."""

    table: RowTable

    @property
    def num_rows(self) -> int:
        """N."""
        return self.table.num_rows

    @property
    def order(self) -> str:
        """One permutation of all rows."""
        return "resident"

    def steps(self, plan: StepPlan, epoch: int, first: int = 0) -> Iterator[RowTable]:
        """Yield all rows of each step of an epoch, from step `first` on."""
        device = self.table.weight.device
        yield from (self.table.take(positions.to(device)) for positions in plan.steps(epoch, first))

    def prepare(self, plan: StepPlan, epoch: int) -> None:
        """Nothing is left to read."""

    def blocks(self, rank: int, world_size: int) -> Iterator[RowTable]:
        """Yield one rank's share of the rows as one table."""
        shares = self.shares(world_size)
        start = sum(shares[:rank])
        rows = torch.arange(start, start + shares[rank], device=self.table.weight.device)
        yield self.table.take(rows)

    def shares(self, world_size: int) -> list[int]:
        """Return how many rows each rank's share has."""
        each, larger = divmod(self.num_rows, world_size)
        return [each + (rank < larger) for rank in range(world_size)]
