"""Blocks of canonical rows as the arrays of the cache."""

from collections.abc import Iterable, Iterator
from dataclasses import fields

import numpy as np
import polars as pl
from jaxtyping import Int8

from embedcache.cache.layout import RowBlock
from embedcache.config import DataConfig, TargetColumn
from embedcache.split.assign import Assignment, labels_of
from embedcache.table.table import Table


def row_blocks(
    table: Table,
    data: DataConfig,
    dealt: Assignment,
    targets: tuple[TargetColumn, ...],
    num_rows: int,
) -> Iterator[RowBlock]:
    """Yield one file in order, `num_rows` rows at a time; `targets` are those of the cache, of
    which the file may lack some.
    """
    columns = [f"string:{column.name}" for column in data.strings] + [
        f"numeric:{column.column}" for column in data.numeric
    ]
    columns += [f"category:{name}" for name, _ in table.categories] + [
        f"target:{target.name}" for target in targets
    ]
    columns += [f"facet:{name}" for name, _ in table.facets] + ["group", "stratum", "weight"]
    columns = [name for name in columns if name in table.columns]
    columns += [dealt.key] if dealt.key is not None and dealt.key not in columns else []
    start = 0
    for frame in table.blocks(columns, num_rows):
        yield _row_block(frame, table, data, targets, dealt.of(frame, start))
        start += frame.height


def reblocked(blocks: Iterable[RowBlock], num_rows: int) -> Iterator[RowBlock]:
    """Yield the same rows in blocks of `num_rows`, the last perhaps smaller: what fills a shard is
    written once.
    """
    held: list[RowBlock] = []
    for block in blocks:
        held.append(block)
        while (have := sum(len(part.weight) for part in held)) >= num_rows:
            whole = _joined(held)
            yield _part(whole, 0, num_rows)
            held = [_part(whole, num_rows, have)] if have > num_rows else []
    if held:
        yield _joined(held)


def _joined(blocks: list[RowBlock]) -> RowBlock:
    if len(blocks) == 1:
        return blocks[0]
    return RowBlock(
        **{
            field.name: np.concatenate([getattr(block, field.name) for block in blocks])
            for field in fields(RowBlock)
        }
    )


def _part(block: RowBlock, start: int, stop: int) -> RowBlock:
    return RowBlock(
        **{field.name: getattr(block, field.name)[start:stop] for field in fields(RowBlock)}
    )


def _row_block(
    frame: pl.DataFrame,
    table: Table,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: Int8[np.ndarray, " N"],
) -> RowBlock:
    spelling = _stacked(frame, [f"string:{column.name}" for column in data.strings], np.int32)
    strings = [table.strings[column.name] for column in data.strings]
    return RowBlock(
        string_id=np.stack(
            [found.id_of_spelling[spelling[:, c]] for c, found in enumerate(strings)], axis=1
        ),
        string_hash=np.stack(
            [found.hash_of_spelling[spelling[:, c]] for c, found in enumerate(strings)], axis=1
        ),
        numeric=_stacked(
            frame, [f"numeric:{column.column}" for column in data.numeric], np.float32
        ),
        category=_stacked(frame, [f"category:{name}" for name, _ in table.categories], np.int32),
        targets=labels_of(frame, targets),
        weight=frame["weight"].to_numpy()
        if data.row_weight is not None
        else np.ones(frame.height, dtype=np.float32),
        group=frame["group"].to_numpy()
        if table.groups is not None
        else np.full(frame.height, -1, dtype=np.int32),
        stratum=frame["stratum"].to_numpy()
        if table.strata
        else np.full(frame.height, -1, dtype=np.int32),
        split=split,
        facets=_stacked(frame, [f"facet:{name}" for name, _ in table.facets], np.int32),
    )


def _stacked(frame: pl.DataFrame, columns: list[str], dtype: type[np.generic]) -> np.ndarray:
    """Return columns side by side, [N, columns], freshly allocated."""
    values = np.empty((frame.height, len(columns)), dtype=dtype)
    for k, column in enumerate(columns):
        values[:, k] = frame[column].to_numpy()
    return values
