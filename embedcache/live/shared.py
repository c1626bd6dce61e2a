"""String columns that share an encoder: a string of any of them is encoded once per step.

A table may have dozens of string columns, the monomers of a chain or the parts of a formulation,
whose strings are largely the same. So the distinct strings of all columns of one encoder are one
table, and one `LiveEncoder` encodes what a step's rows name of it, in whatever columns: one pass,
one dropout mask per string, one memory budget. Each column then reads the vectors of its own
strings, by ids of its own, so that nothing behind it grows with the strings of the others.

Columns begin, read and end a step in their order, as training does: the last to begin has the
strings encoded, the first to read opens a micro-batch, the last to end closes the step.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder.model import StringEncoder
from embedcache.live.arrival import refuse_unannounced
from embedcache.live.bounded import Budget
from embedcache.live.features import FeaturedColumn, bare
from embedcache.live.sources import RowVectors, VectorSource
from embedcache.live.step import LiveEncoder


class SharedColumn:
    """The vectors of one string column, a `VectorSource`; made by `shared_columns`."""

    def __init__(self, shared: "_SharedStep", number: int) -> None:
        self._shared, self._number = shared, number
        self._ids = shared.ids[number]  # of the column's strings in the shared table
        device = shared.live.device
        self._shared_id = self._ids.to(device)
        self._distinct = torch.empty(0, dtype=torch.int64, device=device)
        self._place: Int[Tensor, " S"] | None = None  # where every step has the same strings

    @property
    def live(self) -> LiveEncoder:
        """What encodes the strings of this column and of those that it shares the encoder with."""
        return self._shared.live

    @property
    def encoder(self) -> StringEncoder:
        """The encoder."""
        return self.live.encoder

    @property
    def lengths(self) -> Int[Tensor, " S"]:
        """Tokens per string, on the CPU."""
        return self.live.lengths[self._ids]

    def shared_id(self, string_id: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the ids of the column's strings among those of all columns of the encoder."""
        return self._shared_id[string_id.to(self._shared_id.device)]

    def measure(self) -> Budget:
        """Return what fits into memory; see `LiveEncoder.measure`."""
        return self.live.measure()

    def fix_strings(self, string_id: Int[Tensor, " U"]) -> None:
        """Let every step have these strings of the column, in the columns' order.

        See `LiveEncoder.fix_strings`.
        """
        device = self._shared_id.device
        self._distinct = string_id.to(device)
        self._place = torch.zeros(len(self._ids), dtype=torch.int64, device=device)
        self._place[self._distinct] = torch.arange(len(string_id), device=device)
        self._shared.fix(self._number, self.shared_id(string_id))

    def begin_step(self, string_id: Int[Tensor, " B"], num_micro_batches: int) -> None:
        """Announce the column's rows of the next optimizer step: those of all ranks."""
        if self._place is None:
            self._distinct = torch.unique(string_id)
        self._shared.begin(self._number, self._shared_id[self._distinct], num_micro_batches)

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the vectors of one micro-batch, of the column's strings alone."""
        vectors, encoded = self._shared.read(self._number, self._shared_id[self._distinct])
        if self._place is not None:
            return RowVectors(vectors, self._place[string_id], encoded)
        index = torch.searchsorted(self._distinct, string_id.contiguous())
        index = index.clamp_max(len(self._distinct) - 1)
        refuse_unannounced(self._distinct, index, string_id)
        return RowVectors(vectors, index, encoded)

    def end_step(self) -> None:
        """Check, after the last backward, that the step's whole gradient reached the encoder."""
        if self._number == len(self._shared.ids) - 1:
            self.live.end_step()

    def abandon_step(self) -> None:
        """Forget the present step, after an error or an interrupted epoch."""
        self.live.abandon_step()

    def vectors_of_all_strings(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of the column's strings; see `vectors_of_all_columns`."""
        return self.live.vectors_of_all_strings()[self._shared_id]


class _SharedStep:
    """One optimizer step of the columns of one encoder."""

    def __init__(self, live: LiveEncoder, ids: Sequence[Int[Tensor, " _S"]]) -> None:
        self.live, self.ids = live, ids
        self._announced: list[Int[Tensor, " _U"]] = []
        self._fixed: list[Int[Tensor, " _U"]] = []
        self._read: RowVectors | None = None
        # of each column: the id that a string of the shared table has in it, -1 where it has none
        self._own_id = []
        for column in ids:
            own = torch.full((len(live.lengths),), -1, dtype=torch.int64)
            own[column] = torch.arange(len(column))
            self._own_id.append(own.to(live.device))

    def fix(self, number: int, string_id: Int[Tensor, " U"]) -> None:
        """Take the strings that one column has in every step; the last column's settles it."""
        self._fixed = [*self._fixed[:number], string_id]
        if number == len(self.ids) - 1:
            self.live.fix_strings(torch.cat(self._fixed).unique())

    def begin(self, number: int, string_id: Int[Tensor, " U"], num_micro_batches: int) -> None:
        """Take the strings that one column needs; the last column has all of them encoded."""
        self._announced = [*self._announced[:number], string_id]
        if number == len(self.ids) - 1:
            self.live.begin_step(torch.cat(self._announced), num_micro_batches)

    def read(
        self, number: int, string_id: Int[Tensor, " U"]
    ) -> tuple[Float[Tensor, "U E"], Int[Tensor, " U"]]:
        """Return the vectors of one column's strings for the present micro-batch, and their own ids
        in that column, as the encoder names what it encoded.
        """
        if number == 0:
            self._read = self.live.read(string_id)
        assert self._read is not None, "columns read in their order"
        vectors, encoded = self._read.vectors, self._read.string_id
        if number == len(self.ids) - 1:
            self._read = None  # or the micro-batch's graph would live on
        place = torch.searchsorted(encoded, string_id).clamp_max(len(encoded) - 1)
        return vectors.index_select(0, place), self._own_id[number][encoded[place]]


def shared_columns(live: LiveEncoder, ids: Sequence[Int[Tensor, " _S"]]) -> list[SharedColumn]:
    """Return the sources of columns of one encoder; `ids` are those of `tokens.shared_strings`."""
    shared = _SharedStep(live, ids)
    return [SharedColumn(shared, number) for number in range(len(ids))]


def live_encoders(
    sources: Sequence[VectorSource], string_id: Int[Tensor, "N C"]
) -> list[tuple[LiveEncoder, Int[Tensor, "N _C"]]]:
    """Return each live encoder behind the sources, and the rows' ids of the strings it encodes.

    It has as many columns of them as share it.
    """
    columns: dict[LiveEncoder, list[Int[Tensor, " N"]]] = {}
    for source, own in zip(map(bare, sources), string_id.unbind(1), strict=True):
        if isinstance(source, SharedColumn):
            columns.setdefault(source.live, []).append(source.shared_id(own))
        elif isinstance(source, LiveEncoder):
            columns.setdefault(source, []).append(own)
    return [(live, torch.stack(ids, dim=1)) for live, ids in columns.items()]


def vectors_of_all_columns(sources: Sequence[VectorSource]) -> list[Float[Tensor, "_S _E"]]:
    """Return the present vectors of all strings of each column, without graph.

    Strings of columns that share an encoder are encoded once.
    """
    tables: dict[LiveEncoder, Float[Tensor, "S E"]] = {}
    found = []
    for source in sources:
        column = bare(source)
        if not isinstance(column, SharedColumn):
            found.append(source.vectors_of_all_strings())
            continue
        if column.live not in tables:
            tables[column.live] = column.live.vectors_of_all_strings()
        every = torch.arange(len(column.lengths))
        table = tables[column.live][column.shared_id(every)]
        found.append(source.with_all(table) if isinstance(source, FeaturedColumn) else table)
    return found
