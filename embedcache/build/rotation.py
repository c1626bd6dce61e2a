"""A cache's folds in other splits than they were built in, without building anything.

A cache keeps the fold of each row, and which split a fold is in follows from `split.rotation`. So
one cache serves all rotations: nothing is encoded or written again, only the statistics of train
rows are gathered anew, since they are those of other rows. They are gathered in the blocks in which
a build gathers them, hence equal those of the cache that is built with that rotation, to the bit.
"""

import numpy as np
from jaxtyping import Int8

from embedcache.build.files import tally_of
from embedcache.build.statistics import TrainStatistics
from embedcache.cache.identity import LEFT_OUT, ROTATION, Identity
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS, SplitConfig
from embedcache.errors import SplitError
from embedcache.split.folds import split_of_fold
from embedcache.split.plan import left_out_column, plan_of


def rotated(cache: Cache, split: SplitConfig) -> Cache:
    """Return the cache as it were if it had been built with this split, of another rotation.

    Reads all rows once. Raises SplitError where the rotation gives an unusable split, and where
    there are no folds, since the table itself says its splits.
    """
    if split.strategy == "column":
        raise SplitError(
            "split.strategy 'column' has no rotations: the table itself says which rows train. Give"
            " it a column of fold numbers (strategy folds), or another strategy"
        )
    plan = plan_of(split, cache.layout.folds)
    identity = Identity({**cache.identity.entries, ROTATION: str(split.rotation)})
    return _resplit(cache, split, split_of_fold(np.arange(plan.folds), plan), identity)


def left_out_in_turn(cache: Cache, split: SplitConfig, number: int) -> list[Cache]:
    """Return the cache `number` times, of which each validates on another part of the folds.

    Folds that train or validate in the cache are cut into as many parts: those of one part
    validate, the others train. Test rows test in all of them. Each time all rows are read once.
    Raises SplitError where a part gives an unusable split, where there are fewer folds than parts,
    and for rows ordered in time, of which the later say nothing of the earlier.
    """
    if split.strategy == "column":
        raise SplitError(
            "split.strategy 'column' has no folds to leave out in turn: the table itself says which"
            " rows train. Give it a column of fold numbers (strategy folds), or another strategy"
        )
    plan = plan_of(split, cache.layout.folds)
    if plan.ordered:
        raise SplitError(
            f"split.strategy '{split.strategy}' is ordered in time: its folds cannot be left out in"
            " turn, since training would read what comes after them"
        )
    code = split_of_fold(np.arange(plan.folds), plan)
    used = np.flatnonzero((code == SPLITS.index("train")) | (code == SPLITS.index("validation")))
    if number > len(used):
        raise SplitError(
            f"{len(used)} folds train or validate, which do not make {number} parts to be left out"
            " in turn; raise split.folds or ask for fewer parts"
        )
    views = []
    for part in np.array_split(used, number):
        own = code.copy()
        own[used], own[part] = SPLITS.index("train"), SPLITS.index("validation")
        told = ", ".join(map(str, part))
        identity = Identity({**cache.identity.entries, LEFT_OUT: told})
        views.append(_resplit(cache, split, own, identity))
    return views


def _resplit(
    cache: Cache, split: SplitConfig, split_of: Int8[np.ndarray, " folds"], identity: Identity
) -> Cache:
    """Return the cache with each fold in the split of this number, with statistics of its own."""
    view = cache.resplit(split_of, identity)
    tally = tally_of(view, len(split_of))
    left_out = left_out_column({spec.name: spec.kind for spec in cache.layout.strings}, split)
    tally.check(split.strategy, left_out, cache.layout.groups)
    statistics, length = TrainStatistics(view.layout), view.rows_per_block
    for start in range(0, view.layout.num_rows, length):
        statistics.add(view.rows(start, min(start + length, view.layout.num_rows)))
    strings = {spec.name: view.strings(spec.name) for spec in view.layout.strings}
    view.scaling = statistics.scaling(strings)
    view.report = {**view.report, "split": tally.counts().model_dump(mode="json")}
    return view
