"""Blocks of canonical rows as the arrays of the cache."""

from collections.abc import Iterable, Iterator
from dataclasses import fields

import numpy as np
import polars as pl
from jaxtyping import Int8, Int16, Shaped

from embedcache.cache.layout import RowBlock
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.split.assign import Assignment, labels_of
from embedcache.table.table import Table


def row_blocks(
    table: Table,
    data: DataConfig,
    splits: Assignment,
    targets: tuple[TargetColumn, ...],
    num_rows: int,
) -> Iterator[RowBlock]:
    """Yield the rows of one file in order, `num_rows` at a time.

    `targets` are those of the cache, of which the file may lack some.
    """
    columns = _canonical_names(table, data, targets)
    if splits.key is not None and splits.key not in columns:
        columns.append(splits.key)
    start = 0
    for frame in table.blocks(columns, num_rows):
        yield _row_block(frame, table, data, targets, *splits.of(frame, start))
        start += frame.height


def reblocked(blocks: Iterable[RowBlock], num_rows: int) -> Iterator[RowBlock]:
    """Yield the same rows in blocks of `num_rows`, the last perhaps smaller.

    Files end anywhere; a block that fills a shard is encoded once.
    """
    held: list[RowBlock] = []
    for block in blocks:
        held.append(block)
        while (num_held := sum(len(block.weight) for block in held)) >= num_rows:
            joined = _joined(held)
            yield _cut(joined, 0, num_rows)
            held = [_cut(joined, num_rows, num_held)] if num_held > num_rows else []
    if held:
        yield _joined(held)


def _joined(blocks: list[RowBlock]) -> RowBlock:
    if len(blocks) == 1:
        return blocks[0]
    names = [field.name for field in fields(RowBlock)]
    return RowBlock(
        **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    )


def _cut(block: RowBlock, start: int, stop: int) -> RowBlock:
    names = [field.name for field in fields(RowBlock)]
    return RowBlock(**{name: getattr(block, name)[start:stop] for name in names})


def _canonical_names(
    table: Table, data: DataConfig, targets: tuple[TargetColumn, ...]
) -> list[str]:
    """Return the canonical columns that a cache takes from the table, those that it has."""
    names = [
        *(f"string:{column.name}" for column in data.strings),
        *(f"numeric:{column.column}" for column in data.features),
        *(f"category:{name}" for name, _ in table.categories),
        *(f"target:{target.name}" for target in targets),
        *(f"facet:{name}" for name, _ in table.facets),
        "group",
        "stratum",
        "weight",
    ]
    return [name for name in names if name in table.columns]


def _row_block(
    frame: pl.DataFrame,
    table: Table,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: Int8[np.ndarray, " N"],
    fold: Int16[np.ndarray, " N"],
) -> RowBlock:
    spelling = _stacked(frame, [f"string:{column.name}" for column in data.strings], np.int32)
    string_id, string_hash = np.empty_like(spelling), np.empty(spelling.shape, dtype=np.int64)
    for c, column in enumerate(data.strings):
        found = table.strings[column.name]
        string_id[:, c] = found.id_of_spelling[spelling[:, c]]
        string_hash[:, c] = found.hash_of_spelling[spelling[:, c]]
    absent = np.full(frame.height, -1, dtype=np.int32)
    weighted = data.row_weight is not None
    return RowBlock(
        string_id=string_id,
        string_hash=string_hash,
        numeric=_stacked(
            frame, [f"numeric:{column.column}" for column in data.features], np.float32
        ),
        category=_stacked(frame, [f"category:{name}" for name, _ in table.categories], np.int32),
        targets=labels_of(frame, targets),
        weight=frame["weight"].to_numpy() if weighted else np.ones(frame.height, np.float32),
        group=frame["group"].to_numpy() if table.groups is not None else absent,
        stratum=frame["stratum"].to_numpy() if table.strata else absent,
        split=split,
        fold=fold,
        facets=_stacked(frame, [f"facet:{name}" for name, _ in table.facets], np.int32),
    )


def _stacked(
    frame: pl.DataFrame, columns: list[str], dtype: type[np.generic]
) -> Shaped[np.ndarray, "N K"]:
    """Return K columns side by side, freshly allocated."""
    values = np.empty((frame.height, len(columns)), dtype=dtype)
    for index, column in enumerate(columns):
        values[:, index] = frame[column].to_numpy()
    return values
