"""Rows of the cache as tensors: what the network reads of them, and what the loss reads besides.

A step is a `RowTable` of all its rows, those of every rank: each rank then knows the step's
distinct strings and loss denominators without communication, and reads its own micro-batches. Where
the rows come from is a `RowSource`: `ResidentRows` (in `resident`) where they fit in memory,
`StreamingRows` (in `streaming`) where not. Either way the order of an epoch is a function of
(seed, epoch) alone, the same on every rank, and an epoch can be entered at any step by counting.

Axes: N or B rows, C string columns, F numeric features, K category columns, T tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
import zarr
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.cache.layout import Layout, RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.scaling import Scaling

_CHUNKS_PER_READ = 4


@dataclass(frozen=True)
class RowInputs:
    """What the network reads of B rows, beside the vectors of their strings.

    `string_id[:, c]` indexes the vectors of string column c. The network takes standardised
    features; frames and rewards hold raw units, and say so.
    """

    string_id: Int[Tensor, "B C"]
    numeric: Float[Tensor, "B F"]
    category: Int[Tensor, "B K"]

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.numeric)

    def take(self, rows: Int[Tensor, " _"] | slice) -> "RowInputs":
        """Return the rows at these positions."""
        return _each(self, lambda column: column[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowInputs":
        """Return the rows on a device."""
        return _each(self, lambda column: column.to(device, non_blocking=non_blocking))


FILLING = -1  # row number of what only fills a step up to a graph's size; a row may weigh nothing


@dataclass(frozen=True)
class RowTable:
    """N rows on one device: features standardised, targets as the loss reads them.

    That is with their transforms applied, and NaN where unobserved; a `RowBlock` has raw ones.
    """

    string_id: Int[Tensor, "N C"]
    numeric: Float[Tensor, "N F"]
    category: Int[Tensor, "N K"]
    targets: Float[Tensor, "N T"]
    weight: Float[Tensor, " N"]
    row: Int[Tensor, " N"]  # row number in the source table; FILLING for what is none

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.weight)

    @property
    def inputs(self) -> RowInputs:
        """What the network reads of the rows."""
        return RowInputs(self.string_id, self.numeric, self.category)

    def take(self, rows: Int[Tensor, " B"] | slice) -> "RowTable":
        """Return the rows at these positions."""
        return _each(self, lambda column: column[rows])

    def to(self, device: torch.device | str) -> "RowTable":
        """Return the rows on a device."""
        return _each(self, lambda column: column.to(device))

    def put(self, start: int, rows: "RowTable") -> None:
        """Overwrite the rows from position `start` on."""
        for field in fields(self):
            getattr(self, field.name)[start : start + rows.num_rows] = getattr(rows, field.name)

    def loss_denominators(self) -> Float[Tensor, " T"]:
        """Return per task the sum of row weights over the rows that have a label."""
        return (self.weight.unsqueeze(1) * self.targets.isfinite()).sum(0)


Rows = TypeVar("Rows", RowInputs, RowTable)


def joined(blocks: Sequence[Rows]) -> Rows:
    """Return the rows of all blocks, one after the other; a single block is returned as it is."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    columns = {
        field.name: torch.cat([getattr(block, field.name) for block in blocks])
        for field in fields(first)
    }
    return replace(first, **columns)


def _each(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    """Return rows with a change made to each of their tensors."""
    return replace(
        rows, **{field.name: change(getattr(rows, field.name)) for field in fields(rows)}
    )


def load_rows(cache: Cache, split: str, device: torch.device | str = "cpu") -> RowTable:
    """Return the rows of one split ("train", "validation" or "test") in table order.

    They are read a few chunks at a time: the peak is about twice their memory.
    """
    num_rows, block_rows = cache.layout.num_rows, _CHUNKS_PER_READ * rows_per_chunk(cache)
    blocks = [
        rows_of(cache, cache.rows(start, min(start + block_rows, num_rows)), split, start)
        for start in range(0, num_rows, block_rows)
    ]
    names = [field.name for field in fields(RowTable)]
    columns = {name: [getattr(block, name) for block in blocks] for name in names}
    del blocks  # a column's blocks are freed as soon as it is whole
    return RowTable(**{name: torch.cat(columns.pop(name)) for name in names}).to(device)


def rows_per_chunk(cache: Cache) -> int:
    """Return how many rows are decoded together."""
    return zarr.open_array(cache.path / "rows" / "weight", mode="r").chunks[0]


def rows_of(cache: Cache, block: RowBlock, split: str, start: int = 0) -> RowTable:
    """Return a block's rows of one split; the block begins at row `start` of the table."""
    chosen = np.flatnonzero(block.split == SPLITS.index(split))
    return row_table(block, chosen, cache.scaling, start)


def row_table(
    block: RowBlock,
    chosen: Int[np.ndarray, " n"],
    scaling: Scaling,
    start: int = 0,
) -> RowTable:
    """Return n chosen rows of a block, which begins at row `start` of the table."""
    labels = torch.from_numpy(block.targets[chosen]).double()
    return RowTable(
        string_id=torch.from_numpy(block.string_id[chosen]).long(),
        numeric=scaling.apply(torch.from_numpy(block.numeric[chosen])),
        category=torch.from_numpy(block.category[chosen]).long(),
        targets=scaling.as_learnt(labels).float(),
        weight=torch.from_numpy(block.weight[chosen]),
        row=torch.from_numpy(chosen + start),
    )


def empty_rows(layout: Layout, num_rows: int) -> RowTable:
    """Return room for rows, on the CPU."""
    return RowTable(
        string_id=torch.empty(num_rows, len(layout.strings), dtype=torch.int64),
        numeric=torch.empty(num_rows, len(layout.numeric)),
        category=torch.empty(num_rows, len(layout.categories), dtype=torch.int64),
        targets=torch.empty(num_rows, len(layout.targets)),
        weight=torch.empty(num_rows),
        row=torch.empty(num_rows, dtype=torch.int64),
    )


def row_bytes(layout: Layout) -> int:
    """Return the memory that one row of a RowTable takes."""
    one = empty_rows(layout, 1)
    return sum(getattr(one, field.name).nbytes for field in fields(one))
