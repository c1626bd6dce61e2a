"""Rows of the cache as resident tensors, and the plan of which rows make up which optimizer step.

The whole row table fits in memory (447,480 rows are about 60 MB), so there is no DataLoader: a step is an index into resident tensors. The order of an
epoch is a function of (seed, epoch) alone, the same on every rank; therefore each rank knows all rows of a step, hence the step's distinct strings and
the step's loss denominators, without communication, and a run resumes at any step by counting.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.splits import SPLITS
from embedcache.store import Cache


@dataclass(frozen=True)
class RowTable:
    """N rows on one device: features standardised, targets in raw units with NaN where unobserved."""

    string_id: Int[Tensor, "N C"]
    numeric: Float[Tensor, "N F"]
    category: Int[Tensor, "N K"]
    targets: Float[Tensor, "N T"]
    weight: Float[Tensor, " N"]
    row: Int[Tensor, " N"]  # place in the source table, for messages

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.weight)

    def take(self, rows: Int[Tensor, " B"]) -> "RowTable":
        """Return the rows at these positions."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def loss_denominators(self) -> Float[Tensor, " T"]:
        """Return per task the sum of row weights over the rows that have a label."""
        return (self.weight.unsqueeze(1) * self.targets.isfinite()).sum(0)


def load_rows(cache: Cache, split: str, device: torch.device | str = "cpu") -> RowTable:
    """Return the rows of one split ("train", "validation" or "test") in table order."""
    block = cache.rows()
    chosen = torch.from_numpy(block.split == SPLITS.index(split)).nonzero().squeeze(1)
    numeric = torch.from_numpy(block.numeric)[chosen]
    return RowTable(
        string_id=torch.from_numpy(block.string_id)[chosen].long().to(device),
        numeric=cache.scaling.apply(numeric).to(device),
        category=torch.from_numpy(block.category)[chosen].long().to(device),
        targets=torch.from_numpy(block.targets)[chosen].to(device),
        weight=torch.from_numpy(block.weight)[chosen].to(device),
        row=chosen.to(device),
    )


@dataclass(frozen=True)
class StepPlan:
    """How N rows are dealt to optimizer steps of at most `batch_rows` rows, and each step to ranks x micro-batches.

    The steps of an epoch are of equal size (within one row): an epoch of 313,236 rows at 8,192 is 39 steps of 8,031 or 8,032 rows, not 38 full ones and
    a small one that would get the same learning rate.
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

    def steps(self, epoch: int, first: int = 0) -> Iterator[Int[Tensor, " R"]]:
        """Yield the row positions of each step of an epoch (numbered from 0), from step `first` on."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        yield from order.tensor_split(self.steps_per_epoch)[first:]

    def micro_batches(self, step_rows: Int[Tensor, " R"], rank: int) -> list[Int[Tensor, " B"]]:
        """Return the parts of a step that one rank reads; sizes differ by at most one row, and may be zero."""
        parts = step_rows.tensor_split(self.num_micro_batches * self.world_size)
        return list(parts[rank :: self.world_size])
