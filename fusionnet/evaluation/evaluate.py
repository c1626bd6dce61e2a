"""A trained run on one split of its cache: its metrics, and what they are to be measured against.

Beside them stand the goals, baselines that saw the same train rows, the oracle, and a break-down by
the table's own groups (specification, 7 and 8).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from embedcache.cache.layout import Layout
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.errors import RunError
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.evaluation.bootstrap import confidence_of
from fusionnet.evaluation.breakdown import Arrays, breakdown_of
from fusionnet.evaluation.chances import chances_of
from fusionnet.evaluation.coverage import Coverage, Grouping, Held, band_of, coverage_of
from fusionnet.evaluation.oracle import oracle_metrics, read_oracle
from fusionnet.evaluation.predicted import predicted_rows
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import WHOLE, RunRows, rows_of_cache, units_of
from fusionnet.metrics import Metrics, task_metrics
from fusionnet.trained.run import TrainedRun


def evaluate_run(
    run: TrainedRun,
    cache: Cache,
    split: str,
    oracle: Path | None = None,
    progress: bool = True,
    with_baselines: bool = True,
) -> Evaluation:
    """Return the run's evaluation on "train", "validation" or "test" rows of its cache.

    The cache may have grown, or be in another rotation. Raises StaleCacheError for one that the run
    was not trained on, and what `evaluate_rows` raises.
    """
    return evaluate_rows(run, rows_of_cache(run, cache), split, oracle, progress, with_baselines)


def evaluate_rows(
    run: TrainedRun,
    given: RunRows,
    split: str,
    oracle: Path | None = None,
    progress: bool = True,
    with_baselines: bool = True,
) -> Evaluation:
    """Return the run's evaluation on the rows of a split, or on all rows where it is WHOLE.

    `oracle` is a file of noise-free outcomes. Raises RunError for a split without rows, and for
    goals or an oracle that do not fit the run.
    """
    layout, table, chosen = given.layout, given.block, chosen_rows(given, split)
    predicted = predicted_rows(run, given, chosen, split, progress)
    scores = predicted.scores
    targets = table.targets[chosen].astype(np.float64)
    best = None if oracle is None else read_oracle(run.tasks, oracle, chosen, layout.num_rows)
    arrays = Arrays(table.group[chosen], table.facets[chosen], targets, scores, best)
    baselines: dict[str, dict[str, Metrics]] = {}
    remark = ""
    if with_baselines and split != WHOLE:  # of another table there are no train rows
        baselines, remark = _baselines(run, given, chosen, targets, progress)
    metrics, units = task_metrics(run.tasks, targets, scores), units_of(run, given, chosen)
    return Evaluation(
        split=split,
        metrics=metrics,
        baselines=baselines,
        baselines_remark=remark,
        oracle=None if best is None else oracle_metrics(run.tasks, targets, best),
        by={
            column: breakdown_of(run, layout, arrays, number, progress)
            for number, (column, _) in enumerate(layout.facets)
        },
        num_groups=len(np.unique(arrays.group)) if layout.groups else 0,
        confidence=confidence_of(run.tasks, targets, scores, metrics, units),
        rows=given.row[chosen],
        remark=given.remark,
        targets=targets,
        predictions=predicted.in_units,
        scores=scores,
        intervals=_coverage(run, layout, arrays, predicted.held),
        bands=_bands(run, predicted.held, predicted.in_units),
        chances=chances_of(run, targets, predicted.in_units),
        parts={
            name: task_metrics(run.tasks, targets, alone) for name, alone in predicted.alone.items()
        },
    )


def chosen_rows(given: RunRows, split: str) -> Int[np.ndarray, " n"]:
    """Return the rows of a split, or all where it is WHOLE; raises RunError without any."""
    chosen = np.arange(len(given.block.split))
    if split != WHOLE:
        chosen = np.flatnonzero(given.block.split == SPLITS.index(split))
    if not len(chosen):
        raise RunError(f"{given.where} has no {split} rows")
    return chosen


def _baselines(
    run: TrainedRun,
    given: RunRows,
    chosen: Int[np.ndarray, " n"],
    targets: Float[np.ndarray, "n T"],
    progress: bool,
) -> tuple[dict[str, dict[str, Metrics]], str]:
    """Return the metrics of the quick baselines on n chosen rows, and a remark on them."""
    # not at the top: scikit-learn's boosting takes a second to import
    from fusionnet.evaluation.baselines import beside_a_run

    beside = beside_a_run(given.block, given.layout, run.scaling, run.tasks, chosen, progress)
    return baseline_metrics(run.tasks, targets, beside.predictions), beside.remark


def _bands(
    run: TrainedRun, held: Held | None, predictions: Float[np.ndarray, "n P"]
) -> dict[str, Float[np.ndarray, "_B 3"]]:
    """Return what plots show of the intervals of each number."""
    if held is None:
        return {}
    return {
        task.column: band_of(held.numbers[task.column], predictions[:, own.start])
        for task, own in zip(run.tasks, prediction_columns(run.tasks), strict=True)
        if task.column in held.numbers
    }


def _coverage(
    run: TrainedRun, layout: Layout, arrays: Arrays, held: Held | None
) -> dict[str, Coverage]:
    """Return what intervals hold, and of which group and value of `report_by` the least."""
    if held is None or run.calibration is None:
        return {}
    groupings = [
        Grouping(column, arrays.facets[:, number], values)
        for number, (column, values) in enumerate(layout.facets)
    ]
    if layout.groups and run.data.group not in [each.column for each in groupings]:
        groupings.insert(0, Grouping(str(run.data.group), arrays.group, layout.groups))
    best = arrays.best
    return coverage_of(run.tasks, run.calibration, held, arrays.targets, groupings, best)


def baseline_metrics(
    tasks: Sequence[Task],
    targets: Float[np.ndarray, "N T"],
    of_baselines: Mapping[str, Mapping[int, Float[np.ndarray, "N _"]]],
) -> dict[str, dict[str, Metrics]]:
    """Return each baseline's metrics by target column."""
    found: dict[str, dict[str, Metrics]] = {}
    for name, predictions in of_baselines.items():
        found[name] = {}
        for number, prediction in predictions.items():
            found[name] |= task_metrics([tasks[number]], targets[:, [number]], prediction)
    return found
