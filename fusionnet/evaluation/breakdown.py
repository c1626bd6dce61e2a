"""Metrics by the values of one of the table's own columns (`report_by`).

Axes: N rows, R `report_by` columns.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from embedcache.cache.layout import Layout
from embedcache.text import visible
from fusionnet.evaluation.oracle import oracle_metrics
from fusionnet.metrics import task_metrics
from fusionnet.trained.run import TrainedRun

MANY = 100  # groups; the metrics of fewer take well under two seconds
# value of a column -> {"rows": n, "groups": g, target column: metrics, "oracle": {...}}
Breakdown = dict[str, dict[str, Any]]


class Arrays(NamedTuple):
    """What is known of the evaluated rows; `scores` are predictions as metrics read them, `best`
    the oracle's outcomes.
    """

    group: Int[np.ndarray, " N"]
    facets: Int[np.ndarray, "N R"]
    targets: Float[np.ndarray, "N T"]
    scores: Float[np.ndarray, "N P"]
    best: Float[np.ndarray, "N T"] | None


def breakdown_of(
    run: TrainedRun, layout: Layout, arrays: Arrays, number: int, progress: bool
) -> Breakdown:
    """Return metrics for each value of one of the R `report_by` columns."""
    column, values = layout.facets[number]
    rows_of = rows_of_each(arrays.facets[:, number])
    shown = progress and len(rows_of) > MANY
    what = f"by {visible(column, 40)}"
    bar = tqdm(rows_of.items(), desc=what, leave=False, disable=None if shown else True)
    return {values[code]: _entry(run, layout, arrays, rows) for code, rows in bar}


def _entry(
    run: TrainedRun, layout: Layout, arrays: Arrays, rows: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """Return the metrics of n rows, beside the oracle's and the number of groups among them."""
    targets = arrays.targets[rows]
    entry: dict[str, Any] = {
        "rows": len(rows),
        **task_metrics(run.tasks, targets, arrays.scores[rows]),
    }
    if layout.groups:
        entry["groups"] = len(np.unique(arrays.group[rows]))
    if arrays.best is not None:
        entry["oracle"] = oracle_metrics(run.tasks, targets, arrays.best[rows])
    return entry


def rows_of_each(codes: Int[np.ndarray, " N"]) -> dict[int, Int[np.ndarray, " n"]]:
    """Return for each code that occurs, in ascending order, the n rows that have it."""
    order = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts)[1:], strict=True))
