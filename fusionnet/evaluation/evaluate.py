"""A trained run on one split of its cache: metrics beside goals and the oracle, and broken down by
the table's own groups (specification, 7 and 8).

The oracle is the noise-free outcome of a synthetic table: the best that any model can reach. Where
it is known, a metric is read against it, since an R2 of 0.9 is poor where the oracle has 0.99 and
perfect where the oracle has 0.9.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from tqdm import tqdm

from embedcache.cache.identity import Identity
from embedcache.cache.reader import Cache
from embedcache.config import SPLITS
from embedcache.errors import RunError, StaleCacheError
from fusionnet.metrics import Metrics, reaches, task_metrics
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.rows.tensors import load_rows
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.vectors import vectors_of_all_strings

MANY = 100  # groups; the metrics of fewer take well under two seconds
MOST_NAMED = 12  # groups in one line of the summary


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, and the arrays that plots are drawn from."""

    split: str
    metrics: dict[str, Metrics]  # by target column
    oracle: dict[str, Metrics] | None
    # facet column -> value -> {"rows": n, "groups": g, target column: metrics, "oracle": {...}}
    by: dict[str, dict[str, dict[str, Any]]]
    num_groups: int
    targets: Float[np.ndarray, "N T"]
    predictions: Float[np.ndarray, "N T"]

    def to_json(self, run: TrainedRun) -> dict[str, Any]:
        """Return what metrics.json holds: metrics by split and target, the oracle's, verdicts on
        the goals, break-downs, and what was evaluated.
        """
        content: dict[str, Any] = {self.split: self.metrics}
        if self.oracle is not None:
            content["oracle"] = self.oracle
            content["oracle_share"] = {
                column: {"r2": share}
                for column in self.oracle
                if (share := self.oracle_share(column)) is not None
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
            "mode": run.recipe.mode,
            "split_strategy": run.config["split"]["strategy"],
            "standin": run.standin,
            "note": run.note,
            "not_trained": list(run.layout.absent_targets),
        }

    def oracle_share(self, column: str) -> float | None:
        """Return the share of the oracle's R2 that the model reaches on a regression target, None
        where there is no such number.
        """
        best, own = (
            (found or {}).get(column, {}).get("r2") for found in (self.oracle, self.metrics)
        )
        return own / best if own is not None and best is not None and best > 0 else None

    def verdicts(self, run: TrainedRun, column: str) -> Iterator[tuple[str, float, bool | None]]:
        """Yield (metric, goal, reached) for each goal of a target; None where the metric is
        undefined.
        """
        task = next(task for task in run.tasks if task.column == column)
        for metric, goal in task.goals.items():
            yield metric, goal, reaches(metric, self.metrics[column][metric], goal)


def evaluate_run(
    run: TrainedRun, cache: Cache, split: str, oracle: Path | None = None, progress: bool = True
) -> Evaluation:
    """Return the run's evaluation on "train", "validation" or "test" rows; raises StaleCacheError
    for a cache that the run was not trained on.
    """
    different = Identity(run.identity).difference(cache.identity)
    if different:
        raise StaleCacheError(
            f"{cache.path} is not the cache that {run.folder} was trained on (run -> cache):\n"
            + "\n".join(f"  - {line}" for line in different)
        )
    for task in run.tasks:
        unknown = set(task.goals) - set(
            task_metrics([task], np.empty((0, 1)), np.empty((0, 1)))[task.column]
        )
        if unknown:
            raise RunError(
                f"the goals of task '{task.name}' name {', '.join(sorted(unknown))}, which is no"
                f" metric of a {task.kind} task"
            )
    rows = load_rows(cache, split, run.device)
    if rows.num_rows == 0:
        raise RunError(f"{cache.path} has no {split} rows")
    tables = [
        vectors_of_all_strings(run, spec.name, cache.strings(spec.name).text)
        for spec in cache.layout.strings
    ]
    outputs = forward_rows(run.model, tables, rows, run.recipe.train.eval_batch_rows, progress)
    predictions = to_units(outputs, run.tasks, run.scaling).cpu().numpy().astype(np.float64)
    targets = rows.targets.cpu().numpy().astype(np.float64)
    chosen = rows.row.cpu().numpy()
    best = None if oracle is None else read_oracle(run, oracle, chosen, cache.layout.num_rows)
    group = cache.rows().group[chosen]
    return Evaluation(
        split=split,
        metrics=task_metrics(run.tasks, targets, predictions),
        oracle=None if best is None else _oracle_metrics(run, targets, best),
        by=_by_facet(run, cache, chosen, group, targets, predictions, best, progress),
        num_groups=len(np.unique(group)) if cache.layout.groups else 0,
        targets=targets,
        predictions=predictions,
    )


def read_oracle(
    run: TrainedRun, path: Path, chosen: Int[np.ndarray, " N"], num_rows: int
) -> Float[np.ndarray, "N T"]:
    """Return the noise-free outcomes of the chosen rows, NaN for tasks that the file lacks; it must
    have the table's rows in the table's order.
    """
    if not path.is_file():
        raise RunError(f"there is no oracle file {path}")
    try:
        frame = pl.read_csv(path) if path.suffix.lower() == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunError(f"the oracle {path} cannot be read: {error}") from None
    if len(frame) != num_rows:
        raise RunError(
            f"the oracle {path} has {len(frame):,} rows, the cache {num_rows:,}: it belongs to"
            " another table"
        )
    known = [number for number, task in enumerate(run.tasks) if task.column in frame.columns]
    if not known:
        raise RunError(
            f"the oracle {path} has none of the columns"
            f" {', '.join(task.column for task in run.tasks)}"
        )
    best = np.full((len(chosen), len(run.tasks)), np.nan)
    for number in known:
        best[:, number] = frame[run.tasks[number].column].cast(pl.Float64).to_numpy()[chosen]
    gaps = [run.tasks[number].column for number in known if not np.isfinite(best[:, number]).all()]
    if gaps:
        raise RunError(
            f"the oracle {path} lacks values of {', '.join(gaps)}; it must have one for every row"
        )
    return best


def _oracle_metrics(
    run: TrainedRun, targets: Float[np.ndarray, "N T"], best: Float[np.ndarray, "N T"]
) -> dict[str, Metrics]:
    """Return the metrics of the noise-free outcomes for the tasks that have them."""
    known = np.flatnonzero(np.isfinite(best).all(0))
    return task_metrics([run.tasks[number] for number in known], targets[:, known], best[:, known])


def _by_facet(
    run: TrainedRun,
    cache: Cache,
    chosen: Int[np.ndarray, " N"],
    group: Int[np.ndarray, " N"],
    targets: Float[np.ndarray, "N T"],
    predictions: Float[np.ndarray, "N T"],
    best: Float[np.ndarray, "N T"] | None,
    progress: bool,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return metrics for each value of each `report_by` column, beside the oracle's and the number
    of groups inside.
    """
    codes = cache.rows().facets[chosen]
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for place, (column, values) in enumerate(cache.layout.facets):
        found, starts = np.unique(np.sort(codes[:, place]), return_index=True)
        parts = np.split(np.argsort(codes[:, place], kind="stable"), starts[1:])
        table: dict[str, dict[str, Any]] = {}
        for code, inside in zip(
            tqdm(
                found,
                desc=f"by {column}",
                leave=False,
                disable=None if progress and len(found) > MANY else True,
            ),
            parts,
            strict=True,
        ):
            entry: dict[str, Any] = {
                "rows": len(inside),
                **task_metrics(run.tasks, targets[inside], predictions[inside]),
            }
            if cache.layout.groups:
                entry["groups"] = len(np.unique(group[inside]))
            if best is not None:
                entry["oracle"] = _oracle_metrics(run, targets[inside], best[inside])
            table[values[code]] = entry
        tables[column] = table
    return tables


def summary(run: TrainedRun, evaluation: Evaluation) -> str:
    """Return the evaluation as plain text: one line per metric with goal, verdict and oracle, then
    how the first task's error spreads over groups.
    """
    groups = f" of {evaluation.num_groups:,} {run.data.group}" if evaluation.num_groups else ""
    lines = [
        f"{run.folder}: {len(evaluation.targets):,} {evaluation.split} rows{groups}, checkpoint"
        f" '{run.moment}' (epoch {run.epoch})"
    ]
    lines += [f"NOTE  {run.note}"] if run.note else []
    if run.standin:
        lines.append(
            "NOTE  The encoder is a STAND-IN without published weights: the numbers show the"
            " software, not the chemistry."
        )
    if run.layout.absent_targets:
        lines.append(
            f"not trained, since the table has no labels: {', '.join(run.layout.absent_targets)}"
        )
    lines.append(
        f"{'target':32} {'metric':10} {'value':>9} {'goal':>9} {'':9} {'oracle':>9} {'share':>7}"
    )
    words = {True: "pass", False: "FAIL", None: "undefined"}
    for task in run.tasks:
        verdicts = {
            metric: (goal, words[reached])
            for metric, goal, reached in evaluation.verdicts(run, task.column)
        }
        for metric, value in evaluation.metrics[task.column].items():
            goal, verdict = verdicts.get(metric, (None, ""))
            best = (evaluation.oracle or {}).get(task.column, {}).get(metric)
            share = evaluation.oracle_share(task.column) if metric == "r2" else None
            share_text = "" if share is None else f"{share:7.1%}"
            lines.append(
                f"{task.column:32} {metric:10} {_cell(value)} {_cell(goal, blank='')} {verdict:9}"
                f" {_cell(best, blank='')} {share_text}".rstrip()
            )
    return "\n".join(
        lines + [_spread(run, column, table) for column, table in evaluation.by.items()]
    )


def _spread(run: TrainedRun, column: str, table: dict[str, dict[str, Any]]) -> str:
    """Return how the first task's first metric varies over the values of one column."""
    task = run.tasks[0]
    metric = "mae" if task.kind == "regression" else "accuracy"
    found = {
        value: entry[task.column][metric]
        for value, entry in table.items()
        if entry[task.column][metric] is not None
    }
    if not found:
        return f"{task.column} {metric} by {column}: undefined"
    if len(found) <= MOST_NAMED:
        return f"{task.column} {metric} by {column}: " + ", ".join(
            f"{value} {number:.3f}" for value, number in found.items()
        )
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return (
        f"{task.column} {metric} by {column}: {found[low]:.3f} ({low}) to {found[high]:.3f}"
        f" ({high}), {len(found):,} values"
    )


def output_name(stem: str, split: str) -> str:
    """Return the name of an output: the test split's has no suffix, so that looking at another
    split never overwrites it.
    """
    return stem if split == SPLITS[-1] else f"{stem}_{split}"


def _cell(value: float | None, blank: str = "-") -> str:
    return f"{blank:>9}" if value is None else f"{value:9.4f}"
