"""The baselines beside a run that has just been trained, on the validation rows that judged it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.text import number, text_table
from fusionnet.config.tasks import Task
from fusionnet.evaluation.baselines import beside_a_run
from fusionnet.evaluation.evaluate import baseline_metrics
from fusionnet.metrics import main_metrics

MOST_ROWS = 1_000_000  # of a table, which is held in memory; with two targets some 10 s


def beside_training(
    cache: Cache, tasks: Sequence[Task], record: dict[str, Any], progress: bool
) -> list[str]:
    """Return the table of the best epoch's main metrics beside those of the quick baselines.

    `record` is the log's of that epoch. Nothing where there are no validation rows; in place of a
    table, a line that says why it is not made for a large one.
    """
    if cache.layout.num_rows > MOST_ROWS:
        return [
            f"no baselines: the table has more than {MOST_ROWS:,} rows; `fusionnet evaluate` fits"
            " them"
        ]
    rows = cache.rows()
    chosen = np.flatnonzero(rows.split == SPLITS.index("validation"))
    if len(chosen) == 0:
        return []
    beside = beside_a_run(rows, cache.layout, cache.scaling, tasks, chosen, progress)
    targets = rows.targets[chosen].astype(np.float64)
    main = main_metrics(tasks)
    lines = [(f"epoch {record['epoch']}", *(record[f"{task.name}_{key}"] for task, key in main))]
    lines += [
        (name, *(found.get(task.column, {}).get(key) for task, key in main))
        for name, found in baseline_metrics(tasks, targets, beside.predictions).items()
    ]
    head = (f"{len(chosen):,} validation rows", *(f"{task.name}_{key}" for task, key in main))
    table = text_table([head, *((name, *map(number, values)) for name, *values in lines)])
    return [*table, beside.remark]
