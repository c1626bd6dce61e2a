"""The rows that a run is evaluated on, and its own ones from its cache.

A run is evaluated on its own test rows wherever they can be had for certain: in its cache, also
after other files were appended to that, or in another rotation; or in its table (`tablerows`).

Axes: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from embedcache.cache.identity import ROTATION, Identity
from embedcache.cache.layout import Layout, RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SplitConfig
from embedcache.errors import StaleCacheError
from embedcache.schema import parse_config
from embedcache.split.folds import split_of_fold
from embedcache.split.plan import plan_of
from fusionnet.rows.units import UnitKind, split_unit, unit_of_rows
from fusionnet.trained.run import TrainedRun

WHOLE = "table"  # stands beside the splits for all rows of another table


@dataclass(frozen=True)
class RunRows:
    """All rows of a table, read as the run was trained."""

    layout: Layout  # the run's, with this table's groups and facets
    block: RowBlock  # raw; `string_id` indexes `texts`
    texts: Mapping[str, Sequence[str]]  # prepared strings by string column
    row: Int[np.ndarray, " N"]  # their numbers in the table
    where: str  # names the table in messages
    remark: str = ""  # what a reader of the metrics must know of these rows


def rows_of_cache(run: TrainedRun, cache: Cache) -> RunRows:
    """Return the run's own rows from its cache.

    Files that were appended since, and another rotation of the same folds, change nothing. Raises
    StaleCacheError for a cache of anything else.
    """
    wanted, found = Identity(run.identity), cache.identity
    table = {"table": ", ".join(found.files[: len(wanted.files)])}
    own = Identity({**found.entries, **table, ROTATION: wanted.entries.get(ROTATION, "0")})
    different = wanted.difference(own)
    if different:
        raise StaleCacheError(
            f"{cache.path} is not the cache that {run.folder} was trained on (run -> cache):\n"
            + "\n".join(f"  - {line}" for line in different)
        )
    layout, block = run.layout, cache.rows(0, run.layout.num_rows)
    if found.entries.get(ROTATION) != wanted.entries.get(ROTATION):
        plan = plan_of(split_of(run), layout.folds)
        block = replace(block, split=split_of_fold(np.arange(plan.folds), plan)[block.fold])
    names = [target.name for target in cache.layout.targets]
    columns = [names.index(target.name) for target in layout.targets]
    texts = {
        spec.name: cache.strings(spec.name).text[: spec.num_strings] for spec in layout.strings
    }
    block = replace(block, targets=block.targets[:, columns])
    return RunRows(layout, block, texts, np.arange(layout.num_rows), str(cache.path))


def split_of(run: TrainedRun) -> SplitConfig:
    """Return the split that a run was trained on."""
    return parse_config(SplitConfig, run.config["split"], f"{run.folder}: split")


class Units(NamedTuple):
    """What n rows have in common, so that they are not independent of each other."""

    number: Int[np.ndarray, " n"]
    name: str  # the column of the group, the string column's name, or "row" where rows are alone


def units_of(run: TrainedRun, given: RunRows, chosen: Int[np.ndarray, " n"]) -> Units:
    """Return the units of n chosen rows, which are what the run's split leaves out as wholes.

    Rows of another table that has no column of groups are alone.
    """
    split = split_of(run)
    kind = split_unit(run.data, split)
    if kind.unit == "group" and not given.layout.groups:
        kind = UnitKind("row", "row")
    texts = list(given.texts.values())
    return Units(unit_of_rows(run.data, split, kind, given.block, chosen, texts), kind.column)
