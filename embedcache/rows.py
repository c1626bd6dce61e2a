"""Blocks of canonical rows as the arrays of the cache."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from jaxtyping import Int8

from embedcache.config import DataConfig
from embedcache.dealing import Deal, labels_of
from embedcache.store import RowBlock
from embedcache.table import Table


def row_blocks(table: Table, data: DataConfig, dealt: Deal, num_rows: int) -> Iterator[RowBlock]:
    """Yield the whole table in order, `num_rows` rows at a time."""
    columns = [f"string:{column.name}" for column in data.strings] + [f"numeric:{column.column}" for column in data.numeric]
    columns += [f"category:{name}" for name, _ in table.categories] + [f"target:{target.name}" for target in table.targets]
    columns += [f"facet:{name}" for name, _ in table.facets]
    columns += [name for name, present in (("group", table.groups), ("weight", data.row_weight)) if present]
    columns += [dealt.key] if dealt.key is not None and dealt.key not in columns else []
    start = 0
    for frame in table.blocks(columns, num_rows):
        yield _row_block(frame, table, data, dealt.of(frame, start))
        start += frame.height


def _row_block(frame: pl.DataFrame, table: Table, data: DataConfig, split: Int8[np.ndarray, " N"]) -> RowBlock:
    spelling = _stacked(frame, [f"string:{column.name}" for column in data.strings], np.int32)
    strings = [table.strings[column.name] for column in data.strings]
    return RowBlock(
        string_id=np.stack([found.id_of_spelling[spelling[:, c]] for c, found in enumerate(strings)], axis=1),
        string_hash=np.stack([found.hash_of_spelling[spelling[:, c]] for c, found in enumerate(strings)], axis=1),
        numeric=_stacked(frame, [f"numeric:{column.column}" for column in data.numeric], np.float32),
        category=_stacked(frame, [f"category:{name}" for name, _ in table.categories], np.int32),
        targets=labels_of(frame, table),
        weight=frame["weight"].to_numpy() if data.row_weight is not None else np.ones(frame.height, dtype=np.float32),
        group=frame["group"].to_numpy() if table.groups is not None else np.full(frame.height, -1, dtype=np.int32),
        split=split,
        facets=_stacked(frame, [f"facet:{name}" for name, _ in table.facets], np.int32),
    )


def _stacked(frame: pl.DataFrame, columns: list[str], dtype: type[np.generic]) -> np.ndarray:
    """Return columns side by side, [N, columns], freshly allocated."""
    values = np.empty((frame.height, len(columns)), dtype=dtype)
    for k, column in enumerate(columns):
        values[:, k] = frame[column].to_numpy()
    return values
