"""What a training step saves by encoding each distinct string once, told before the first one."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.tokens import shared_strings
from embedcache.saving import Saving, num_cells_of, saving_of
from fusionnet.rows.resident import ResidentRows, RowSource

ONCE_PER_STEP = ("per_step", "prefix")  # modes; the others encode nothing, or for comparison


def saving_in_words(saving: Saving | None) -> str:
    """Return what a step encodes instead of what, "" where it encodes nothing once."""
    if saving is None:
        return ""
    return f"each step of {saving.num_rows:,} rows encodes {saving.in_words()}"


def saving_of_rows(
    cache: Cache, encoders: Sequence[EncoderConfig], rows: RowSource, batch_rows: int
) -> Saving | None:
    """Return what steps on these rows of a cache save; None where none encodes a string once.

    `encoders` has one entry per string column. Where rows are streamed, those of all splits stand
    for them.
    """
    if not isinstance(rows, ResidentRows):
        return saving_of_cache(cache, encoders, batch_rows)
    num_cells = [
        num_cells_of(ids, spec.num_strings)
        for ids, spec in zip(rows.table.string_id.unbind(1), cache.layout.strings, strict=True)
    ]
    return _saving(cache, encoders, num_cells, rows.num_rows, batch_rows)


def saving_of_cache(
    cache: Cache, encoders: Sequence[EncoderConfig], batch_rows: int
) -> Saving | None:
    """Return what steps on a cache's rows save, of whatever split; see `saving_of_rows`."""
    num_cells = [cache.strings(spec.name).num_rows for spec in cache.layout.strings]
    return _saving(cache, encoders, num_cells, cache.layout.num_rows, batch_rows)


def _saving(
    cache: Cache,
    encoders: Sequence[EncoderConfig],
    num_cells: Sequence[Int[Tensor, " _S"]],
    num_rows: int,
    batch_rows: int,
) -> Saving | None:
    """Return the saving where each string of a column is in so many of the rows."""
    specs = cache.layout.strings
    if not encoders or encoders[0].mode not in ONCE_PER_STEP:
        return None
    found = []
    for config in dict.fromkeys(encoders):
        own = [number for number, each in enumerate(encoders) if each == config]
        tables = [cache.strings(specs[number].name) for number in own]
        tokens, ids = shared_strings(
            [table.text for table in tables], [table.tokens for table in tables]
        )
        counts = torch.zeros(tokens.num_strings, dtype=torch.int64)
        for number, of_column in zip(own, ids, strict=True):
            counts.index_add_(0, of_column, num_cells[number].long())
        found.append((counts, tokens.lengths))
    return saving_of(found, num_rows, batch_rows)
