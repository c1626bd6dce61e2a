"""What never straddles two splits, so that what is learnt of it helps none of the other splits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from embedcache.cache.layout import RowBlock
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.split.plan import left_out_column
from fusionnet.config.calibration import Unit


class UnitKind(NamedTuple):
    """What rows are drawn by, and the column that says so."""

    unit: Unit
    column: str  # of the group, or the string column's name; "row" where rows are alone


def split_unit(data: DataConfig, split: SplitConfig) -> UnitKind:
    """Return what a split leaves out as a whole."""
    string = left_out_string(data, split)
    if string is not None:
        return UnitKind("string", data.strings[string].name)
    if data.group is not None:
        return UnitKind("group", data.group)
    return UnitKind("row", "row")


def unit_of_rows(
    data: DataConfig,
    split: SplitConfig,
    kind: UnitKind,
    block: RowBlock,
    rows: Int[np.ndarray, " n"],
    texts: Sequence[Sequence[str]],
) -> Int[np.ndarray, " n"]:
    """Return for each chosen row of a block the number of its unit.

    `texts` are the distinct strings, by string column. Where scaffolds are left out, they are the
    units of strings.
    """
    if kind.unit == "row":
        return np.arange(len(rows))
    if kind.unit == "group":
        return block.group[rows].astype(np.int64)
    string = [column.name for column in data.strings].index(kind.column)
    number = block.string_id[rows, string].astype(np.int64)
    if split.strategy == "scaffold" and string == left_out_string(data, split):
        # not at the top: RDKit, which only this split needs
        from embedcache.split.scaffold import scaffold_groups

        return scaffold_groups(texts[string])[number]
    return number


def left_out_string(data: DataConfig, split: SplitConfig) -> int | None:
    """Return the number of the string column whose strings are left out of training; or None."""
    kinds = {column.name: column.kind for column in data.strings}
    name = left_out_column(kinds, split)
    return None if name is None else list(kinds).index(name)
