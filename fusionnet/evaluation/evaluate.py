"""A trained run on one split of its cache: its metrics, and what they are to be measured against.

Beside them stand the goals, baselines that saw the same train rows, the oracle, and a break-down by
the table's own groups (specification, 7 and 8).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from embedcache.cache.layout import Layout
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.errors import RunError
from embedcache.text import visible
from fusionnet.config.tasks import Task
from fusionnet.evaluation.chances import Chances, chances_of
from fusionnet.evaluation.coverage import LEVEL, Coverage, Grouping, Held, coverage_of
from fusionnet.evaluation.oracle import oracle_metrics, read_oracle
from fusionnet.evaluation.rows import WHOLE, RunRows, rows_of_cache
from fusionnet.metrics import Metrics, macro_metrics, reaches, task_metrics
from fusionnet.model.forward import forward_rows, refuse_non_finite
from fusionnet.rows.tensors import row_table
from fusionnet.trained.blended import Found, found_of, tree_tables
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import bounds_of
from fusionnet.trained.vectors import vectors_of_all_strings

NETWORK_ALONE, TREES_ALONE = "its network alone", "its boosting alone"
MANY = 100  # groups; the metrics of fewer take well under two seconds
# value of a column -> {"rows": n, "groups": g, target column: metrics, "oracle": {...}}
Breakdown = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, and the arrays that plots are drawn from."""

    split: str
    metrics: dict[str, Metrics]  # by target column
    baselines: dict[str, dict[str, Metrics]]  # by name and target column; empty if not asked for
    baselines_remark: str
    oracle: dict[str, Metrics] | None
    by: dict[str, Breakdown]  # by facet column
    num_groups: int
    rows: Int[np.ndarray, " N"]  # their numbers in the table
    targets: Float[np.ndarray, "N T"]
    predictions: Float[np.ndarray, "N P"]  # probabilities of classes
    scores: Float[np.ndarray, "N P"]  # as metrics read them
    parts: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # of a blend, each alone
    remark: str = ""  # what a reader must know of the rows
    intervals: dict[str, Coverage] = field(default_factory=dict)  # by target column
    chances: dict[str, Chances] = field(default_factory=dict)  # by column of classes

    def to_json(self, run: TrainedRun) -> dict[str, Any]:
        """Return what metrics.json holds.

        Metrics by split and target, those of baselines and oracle, verdicts on the goals,
        break-downs, and what was evaluated.
        """
        content: dict[str, Any] = {self.split: self.metrics}
        if macro := macro_metrics(run.tasks, self.metrics):
            content["macro"] = macro
        if self.parts:
            content["parts"] = self.parts
        for name, found in (("intervals", self.intervals), ("probabilities", self.chances)):
            if found:
                content[name] = {
                    column: each.model_dump(mode="json") for column, each in found.items()
                }
        if self.baselines:
            content["baselines"] = self.baselines
            content["baselines_remark"] = self.baselines_remark
        if self.oracle is not None:
            shares = {column: self.oracle_share(column) for column in self.oracle}
            content["oracle"] = self.oracle
            content["oracle_share"] = {
                column: {"r2": share} for column, share in shares.items() if share is not None
            }
        content["goals"] = {
            task.column: {
                metric: {"goal": goal, "reached": reached}
                for metric, goal, reached in self.verdicts(run, task.column)
            }
            for task in run.tasks
            if task.goals
        }
        return {
            **content,
            "by": self.by,
            "checkpoint": run.moment,
            "epoch": run.epoch,
            "num_rows": len(self.targets),
            "num_groups": self.num_groups,
            "mode": run.recipe.mode if run.layout.strings else None,
            "split_strategy": run.config["split"]["strategy"],
            "standin": run.standin,
            "note": run.note,
            "rows": self.remark or f"the run's own {self.split} rows",
            "not_trained": list(run.layout.absent_targets),
        }

    def oracle_share(self, column: str) -> float | None:
        """Return the share of the oracle's R2 that the model reaches on a regression target.

        None where there is no such number.
        """
        best = (self.oracle or {}).get(column, {}).get("r2")
        own = self.metrics.get(column, {}).get("r2")
        return own / best if own is not None and best is not None and best > 0 else None

    def verdicts(self, run: TrainedRun, column: str) -> Iterator[tuple[str, float, bool | None]]:
        """Yield (metric, goal, reached) for each goal of a target; None where it is undefined."""
        task = next(task for task in run.tasks if task.column == column)
        for metric, goal in task.goals.items():
            yield metric, goal, reaches(metric, self.metrics[column][metric], goal)


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
    layout, table = given.layout, given.block
    chosen = np.arange(len(table.split))
    if split != WHOLE:
        chosen = np.flatnonzero(table.split == SPLITS.index(split))
    if not len(chosen):
        raise RunError(f"{given.where} has no {split} rows")
    predicted = _predicted(run, given, chosen, split, progress)
    scores = predicted.scores
    targets = table.targets[chosen].astype(np.float64)
    best = None if oracle is None else read_oracle(run.tasks, oracle, chosen, layout.num_rows)
    arrays = _Arrays(table.group[chosen], table.facets[chosen], targets, scores, best)
    baselines, remark = {}, ""
    if with_baselines and split != WHOLE:  # of another table there are no train rows
        # not at the top: scikit-learn's boosting takes a second to import
        from fusionnet.evaluation.baselines import beside_a_run

        beside = beside_a_run(table, layout, run.scaling, run.tasks, chosen, progress)
        baselines, remark = baseline_metrics(run.tasks, targets, beside.predictions), beside.remark
    return Evaluation(
        split=split,
        metrics=task_metrics(run.tasks, targets, scores),
        baselines=baselines,
        baselines_remark=remark,
        oracle=None if best is None else oracle_metrics(run.tasks, targets, best),
        by={
            column: _breakdown(run, layout, arrays, number, progress)
            for number, (column, _) in enumerate(layout.facets)
        },
        num_groups=len(np.unique(arrays.group)) if layout.groups else 0,
        rows=given.row[chosen],
        remark=given.remark,
        targets=targets,
        predictions=predicted.in_units,
        scores=scores,
        intervals=_coverage(run, layout, arrays, predicted.held),
        chances=chances_of(run, targets, predicted.in_units),
        parts={
            name: task_metrics(run.tasks, targets, alone) for name, alone in predicted.alone.items()
        },
    )


class _Predicted(NamedTuple):
    """What a run predicts of n rows, and what its parts would."""

    in_units: Float[np.ndarray, "n P"]
    scores: Float[np.ndarray, "n P"]
    alone: dict[str, Float[np.ndarray, "n P"]]  # scores by what is alone
    held: Held | None  # intervals and sets at LEVEL; None where the run has none


def _predicted(
    run: TrainedRun, given: RunRows, chosen: Int[np.ndarray, " n"], split: str, progress: bool
) -> _Predicted:
    """Return the predictions of n chosen rows, and the scores that metrics read."""
    rows = row_table(given.block, chosen, run.scaling)
    rows = replace(rows, row=torch.from_numpy(given.row[chosen])).to(run.device)
    tables = [vectors_of_all_strings(run, name, texts) for name, texts in given.texts.items()]
    outputs = forward_rows(run.model, tables, rows, run.recipe.train.eval_batch_rows, progress)
    found = found_of(run, outputs, rows.inputs, tree_tables(run, given.texts, tables))
    in_units = found.in_units(run)
    where, columns = f"the {split} rows of {given.where}", run.scaling.columns
    refuse_non_finite(in_units, run.tasks, rows.numeric, columns, rows.row, where)
    held = None
    if run.calibration is not None and run.calibration.scores:
        bounds = bounds_of(run, LEVEL, outputs, in_units, rows.inputs, given.texts)
        held = Held(
            {column: _numpy(each) for column, each in bounds.numbers.items()},
            {column: each.cpu().numpy() for column, each in bounds.classes.items()},
        )
    return _Predicted(
        _numpy(in_units),
        _numpy(found.in_units(run, "score")),
        {name: _numpy(alone) for name, alone in _alone(run, found).items()},
        held,
    )


def _coverage(
    run: TrainedRun, layout: Layout, arrays: "_Arrays", held: Held | None
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


def _alone(run: TrainedRun, found: Found) -> dict[str, Float[Tensor, "n P"]]:
    """Return the scores of a blend's network and of its trees, each alone; nothing without one."""
    if run.blend is None:
        return {}
    return {
        NETWORK_ALONE: found.in_units(replace(run, blend=None), "score"),
        TREES_ALONE: found.in_units(replace(run, blend=run.blend.trees_alone()), "score"),
    }


def _numpy(values: Float[Tensor, "n P"]) -> Float[np.ndarray, "n P"]:
    return values.cpu().numpy().astype(np.float64)


def rows_of_each(codes: Int[np.ndarray, " N"]) -> dict[int, Int[np.ndarray, " n"]]:
    """Return for each code that occurs, in ascending order, the n rows that have it."""
    order = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts)[1:], strict=True))


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


class _Arrays(NamedTuple):
    """What is known of the evaluated rows; `scores` are predictions as metrics read them, `best`
    the oracle's outcomes.
    """

    group: Int[np.ndarray, " N"]
    facets: Int[np.ndarray, "N R"]
    targets: Float[np.ndarray, "N T"]
    scores: Float[np.ndarray, "N P"]
    best: Float[np.ndarray, "N T"] | None


def _breakdown(
    run: TrainedRun, layout: Layout, arrays: _Arrays, number: int, progress: bool
) -> Breakdown:
    """Return metrics for each value of one of the R `report_by` columns."""
    column, values = layout.facets[number]
    rows_of = rows_of_each(arrays.facets[:, number])
    shown = progress and len(rows_of) > MANY
    what = f"by {visible(column, 40)}"
    bar = tqdm(rows_of.items(), desc=what, leave=False, disable=None if shown else True)
    return {values[code]: _entry(run, layout, arrays, rows) for code, rows in bar}


def _entry(
    run: TrainedRun, layout: Layout, arrays: _Arrays, rows: Int[np.ndarray, " n"]
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
