"""What never straddles two splits, so that what is learnt of it helps none of the other splits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from embedcache.cache.layout import RowBlock
from embedcache.split.plan import left_out_column
from embedcache.split.scaffold import scaffold_groups
from fusionnet.config.calibration import Unit
from fusionnet.experiment import Experiment


class UnitKind(NamedTuple):
    """What rows are drawn by, and the column that says so."""

    unit: Unit
    column: str  # of the group, or the string column's name; "row" where rows are alone


def split_unit(experiment: Experiment) -> UnitKind:
    """Return what the experiment's split leaves out as a whole."""
    string = left_out_string(experiment)
    if string is not None:
        return UnitKind("string", experiment.data.strings[string].name)
    if experiment.data.group is not None:
        return UnitKind("group", experiment.data.group)
    return UnitKind("row", "row")


def unit_of_rows(
    experiment: Experiment,
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
    string = [column.name for column in experiment.data.strings].index(kind.column)
    number = block.string_id[rows, string].astype(np.int64)
    by_scaffold = experiment.split.strategy == "scaffold" and string == left_out_string(experiment)
    return scaffold_groups(texts[string])[number] if by_scaffold else number


def left_out_string(experiment: Experiment) -> int | None:
    """Return the number of the string column whose strings are left out of training; or None."""
    kinds = {column.name: column.kind for column in experiment.data.strings}
    name = left_out_column(kinds, experiment.split)
    return None if name is None else list(kinds).index(name)
