"""The rows of a split that does not fit in memory, read from the cache in the background.

They are mixed in a buffer and handed out step by step.

Mixing. Neighbouring rows of a table belong together (a patient's rows follow one another), so a
buffer filled in table order would show the model one patient after another. The unit of reading is
a Zarr chunk. A buffer of k chunks holds one random chunk from each of k equal stretches of the
table: whatever varies slowly along the table is then almost the same in every buffer as in the
table. A plain draw of k chunks would leave its mean off by sigma / sqrt(k), this one by about sigma
/ k^1.5. Inside the buffer rows are in uniformly random order. A step that spans two buffers takes
the end of one and the beginning of the next.

Memory. While one buffer is handed out, a thread fills the next: two buffers, one chunk being
decoded, whatever N is. The step waits only if reading is slower than training. Zarr's codecs and
the copies release the interpreter's lock.

Counting. Chunks hold rows of all splits, so how many rows of this split each has is counted once,
when the source is opened; that pass also checks the digest of every file, so that a damaged cache
is refused before the first step, not in the middle of an epoch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from embedcache.cache.reader import Cache
from embedcache.config.split import NO_SPLIT, SPLITS
from embedcache.errors import ConfigError, CorruptCacheError
from fusionnet.config.train import TrainConfig
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows, RowSource
from fusionnet.rows.tensors import (
    RowTable,
    empty_rows,
    joined,
    load_rows,
    row_bytes,
    rows_of,
    rows_per_chunk,
)

FEWEST_CHUNKS = 4  # in a buffer; fewer would not mix
_DECODING = 3  # chunks' worth of memory that reading one takes: decoded, chosen, standardised
_ORDER_BYTES = 8  # of a row's index in the shuffled buffer


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of the table, and how many of them belong to the split."""

    start: int
    stop: int
    num_rows: int


@dataclass(frozen=True)
class Buffer:
    """M rows of several chunks and the order in which they are handed out."""

    table: RowTable
    order: Int[Tensor, " M"]


def open_rows(
    cache: Cache, train: TrainConfig, device: torch.device | str
) -> tuple[RowSource, RowSource]:
    """Return the train and the validation rows, resident or streaming as `train.rows` says.

    "auto" holds them in memory if the table fits into `train.rows_memory_mib`.
    """
    budget_bytes = train.rows_memory_mib << 20
    fits = cache.layout.num_rows * row_bytes(cache.layout) <= budget_bytes
    if train.rows == "resident" or (train.rows == "auto" and fits):
        train_rows = load_rows(cache, "train", device)
        return ResidentRows(train_rows), ResidentRows(load_rows(cache, "validation", device))
    chunks = count_chunks(cache)
    return (
        StreamingRows(cache, "train", chunks["train"], budget_bytes, device),
        StreamingRows(cache, "validation", chunks["validation"], budget_bytes, device),
    )


class StreamingRows:
    """A split whose rows are read from the cache as they are needed, in bounded memory."""

    def __init__(
        self,
        cache: Cache,
        split: str,
        chunks: Sequence[Chunk],
        budget_bytes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`chunks` are those that hold rows of the split.

        Raises ConfigError if the budget does not hold two buffers of a few of them.
        """
        self._cache, self._split, self._chunks, self._device = cache, split, chunks, device
        self._rows_per_chunk = rows_per_chunk(cache)
        chunk_bytes = self._rows_per_chunk * (row_bytes(cache.layout) + _ORDER_BYTES)
        self.chunks_per_buffer = min(
            (budget_bytes // chunk_bytes - _DECODING) // 2, max(1, len(chunks))
        )
        if self.chunks_per_buffer < min(FEWEST_CHUNKS, len(chunks)):
            needed = (2 * min(FEWEST_CHUNKS, len(chunks)) + _DECODING) * chunk_bytes
            raise ConfigError(
                f"train.rows_memory_mib={budget_bytes >> 20} is too small to mix rows: two buffers"
                f" of {FEWEST_CHUNKS} chunks of {self._rows_per_chunk:,} rows take"
                f" {-(-needed >> 20)} MiB; raise it, or rebuild the cache with a smaller"
                " cache.rows_per_chunk"
            )
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._pending: tuple[tuple[int, int, int], Future[Buffer]] | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return sum(chunk.num_rows for chunk in self._chunks)

    @property
    def order(self) -> str:
        """Chunks and buffers decide which rows meet."""
        return (
            f"streaming, {self._rows_per_chunk} rows per chunk, {self.chunks_per_buffer} chunks per"
            " buffer"
        )

    def steps(self, plan: StepPlan, epoch: int, first: int = 0) -> Iterator[RowTable]:
        """Yield all rows of each step of an epoch, from step `first` on.

        Only the buffers that these steps need are read.
        """
        buffers = self._buffers(plan.seed, epoch)
        sizes = [sum(chunk.num_rows for chunk in chunks) for chunks in buffers]
        edges = np.cumsum([0, *sizes])
        start = sum(plan.step_sizes[:first])
        number = int(np.searchsorted(edges, start, side="right")) - 1
        position = start - int(edges[number])  # of the next row in buffer `number`
        buffer: Buffer | None = None
        for missing in plan.step_sizes[first:]:
            pieces: list[RowTable] = []
            while missing > 0:
                if buffer is not None and position == buffer.table.num_rows:
                    buffer, number, position = None, number + 1, 0
                if buffer is None:
                    more = number + 1 < len(buffers)
                    buffer = self._fetch(plan.seed, epoch, number, more)
                chosen = buffer.order[position : position + missing]
                pieces.append(buffer.table.take(chosen))
                position += len(chosen)
                missing -= len(chosen)
            yield joined(pieces).to(self._device)

    def prepare(self, plan: StepPlan, epoch: int) -> None:
        """Start reading the epoch's first buffer."""
        if self._pending is None and self._chunks:
            self._submit((plan.seed, epoch, 0))

    def blocks(self, rank: int, world_size: int) -> Iterator[RowTable]:
        """Yield one rank's share of the rows, chunk by chunk; the next chunk is read meanwhile."""
        numbers = np.array_split(np.arange(len(self._chunks)), world_size)[rank]
        chunks = [self._chunks[number] for number in numbers]
        ahead: Future[RowTable] | None = None
        for chunk, following in zip(chunks, [*chunks, None][1:], strict=True):
            block = (ahead or self._reader.submit(self._read, chunk)).result()
            ahead = None if following is None else self._reader.submit(self._read, following)
            yield block.to(self._device)

    def shares(self, world_size: int) -> list[int]:
        """Return how many rows each rank's share has."""
        sizes = np.array([chunk.num_rows for chunk in self._chunks], dtype=np.int64)
        return [int(share.sum()) for share in np.array_split(sizes, world_size)]

    def _buffers(self, seed: int, epoch: int) -> list[list[Chunk]]:
        """Return the chunks of each buffer of an epoch.

        There is one from each of `chunks_per_buffer` stretches of the table, as far as they go
        round.
        """
        generator = np.random.default_rng((seed, epoch))
        num_buffers = max(1, -(-len(self._chunks) // self.chunks_per_buffer))
        buffers: list[list[Chunk]] = [[] for _ in range(num_buffers)]
        for stretch in np.array_split(np.arange(len(self._chunks)), self.chunks_per_buffer):
            chunks = generator.permutation(stretch)
            order = generator.permutation(num_buffers)
            for number, buffer in zip(chunks, order, strict=False):
                buffers[buffer].append(self._chunks[number])
        return buffers

    def _fetch(self, seed: int, epoch: int, number: int, more: bool) -> Buffer:
        """Return a buffer, waiting for it if need be, and start reading the next if `more`."""
        wanted = (seed, epoch, number)
        if self._pending is None or self._pending[0] != wanted:
            self._submit(wanted)
        assert self._pending is not None
        buffer = self._pending[1].result()
        self._pending = None
        if more:
            self._submit((seed, epoch, number + 1))
        return buffer

    def _submit(self, which: tuple[int, int, int]) -> None:
        self._pending = (which, self._reader.submit(self._fill, *which))

    def _fill(self, seed: int, epoch: int, number: int) -> Buffer:
        """Return a buffer: its chunks, read, and a random order of their rows."""
        chunks = self._buffers(seed, epoch)[number]
        table = empty_rows(self._cache.layout, sum(chunk.num_rows for chunk in chunks))
        start = 0
        for chunk in chunks:
            table.put(start, self._read(chunk))
            start += chunk.num_rows
        order = np.random.default_rng((seed, epoch, number)).permutation(table.num_rows)
        return Buffer(table, torch.from_numpy(order))

    def _read(self, chunk: Chunk) -> RowTable:
        """Return the chunk's rows of the split."""
        block = self._cache.rows(chunk.start, chunk.stop)
        rows = rows_of(self._cache, block, self._split, chunk.start)
        if rows.num_rows != chunk.num_rows:
            raise CorruptCacheError(
                f"{self._cache.path}: rows {chunk.start} to {chunk.stop} changed their split while"
                " they were being trained on; put the files back as they were and go on with"
                " --resume, or rebuild the cache and train anew"
            )
        return rows


def count_chunks(cache: Cache) -> dict[str, list[Chunk]]:
    """Return for each split the chunks that hold rows of it, in table order.

    Reads and checks all rows once.
    """
    total, length = cache.layout.num_rows, rows_per_chunk(cache)
    chunks: dict[str, list[Chunk]] = {split: [] for split in SPLITS}
    with tqdm(
        total=total, unit="rows", unit_scale=True, desc="count rows", leave=False, disable=None
    ) as bar:
        for start in range(0, total, length):
            stop = min(start + length, total)
            codes = cache.rows(start, stop).split
            counts = np.bincount(codes[codes != NO_SPLIT], minlength=len(SPLITS))
            for split, num_rows in zip(SPLITS, counts.tolist(), strict=True):
                if num_rows > 0:
                    chunks[split].append(Chunk(start, stop, num_rows))
            bar.update(stop - start)
    return chunks
