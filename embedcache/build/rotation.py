"""Another rotation of a cache's folds, without building anything.

A cache keeps the fold of each row, and which split a fold is in follows from `split.rotation`. So
one cache serves all rotations: nothing is encoded or written again, only the statistics of train
rows are gathered anew, since they are those of other rows. They are gathered in the blocks in which
a build gathers them, hence equal those of the cache that is built with that rotation, to the bit.
"""

import numpy as np

from embedcache.build.files import tally_of
from embedcache.build.statistics import TrainStatistics
from embedcache.cache.identity import ROTATION, Identity
from embedcache.cache.reader import Cache
from embedcache.config.split import SplitConfig
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
    view = cache.resplit(split_of_fold(np.arange(plan.folds), plan), identity)
    tally = tally_of(view, plan.folds)
    left_out = left_out_column({spec.name: spec.kind for spec in cache.layout.strings}, split)
    tally.check(split.strategy, left_out, cache.layout.groups)
    statistics, length = TrainStatistics(view.layout), view.rows_per_block
    for start in range(0, view.layout.num_rows, length):
        statistics.add(view.rows(start, min(start + length, view.layout.num_rows)))
    strings = {spec.name: view.strings(spec.name) for spec in view.layout.strings}
    view.scaling = statistics.scaling(strings)
    view.report = {**view.report, "split": tally.counts().model_dump(mode="json")}
    return view
