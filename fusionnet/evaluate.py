"""A trained run on one split of its cache: metrics beside goals and the oracle, and broken down by the table's own groups (specification, 7 and 8)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from embedcache.errors import RunError, StaleCacheError
from embedcache.fingerprint import Identity
from embedcache.store import Cache
from fusionnet.batches import load_rows
from fusionnet.metrics import Metrics, reaches, task_metrics
from fusionnet.predict import forward_rows, to_units
from fusionnet.run import TrainedRun, vectors_of

LEAST_ROWS = 2  # of a group that is worth a line


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, and the arrays that plots are drawn from."""

    split: str
    metrics: dict[str, Metrics]  # by target column
    oracle: dict[str, Metrics] | None
    by: dict[str, dict[str, dict[str, Any]]]  # facet column -> value -> {"rows": n, column: metrics}
    targets: Float[np.ndarray, "N T"]
    predictions: Float[np.ndarray, "N T"]

    def to_json(self, run: TrainedRun) -> dict[str, Any]:
        """Return what metrics.json holds."""
        content: dict[str, Any] = {self.split: self.metrics}
        if self.oracle is not None:
            content["oracle"] = self.oracle
        goals = [(task, metric, goal) for task in run.tasks for metric, goal in task.goals.items()]
        content["goals"] = {f"{task.column} {metric}": {"goal": goal, "reached": reaches(metric, self.metrics[task.column].get(metric), goal)}
                            for task, metric, goal in goals}  # fmt: skip
        content["by"] = self.by
        about = {"checkpoint": run.moment, "epoch": run.epoch, "num_rows": len(self.targets), "standin_encoder": run.standin, "mode": run.recipe.mode}
        return {**content, "about": about}


def evaluate_run(run: TrainedRun, cache: Cache, split: str, oracle: Path | None = None, progress: bool = True) -> Evaluation:
    """Return the run's evaluation on "train", "validation" or "test" rows; raises StaleCacheError for a cache that the run was not trained on."""
    different = Identity(run.identity).difference(cache.identity)
    if different:
        raise StaleCacheError(
            f"{cache.path} is not the cache that {run.folder} was trained on (run -> cache):\n" + "\n".join(f"  - {line}" for line in different)
        )
    device = next(run.model.parameters()).device
    rows = load_rows(cache, split, device)
    if rows.num_rows == 0:
        raise RunError(f"{cache.path} has no {split} rows")
    tables = [vectors_of(run, spec.name, cache.strings(spec.name).text) for spec in cache.layout.strings]
    outputs = forward_rows(run.model, tables, rows, run.recipe.train.eval_batch_rows, progress)
    predictions = to_units(outputs, run.tasks, run.scaling).cpu().numpy().astype(np.float64)
    targets = rows.targets.cpu().numpy().astype(np.float64)
    chosen = rows.row.cpu().numpy()
    return Evaluation(
        split=split,
        metrics=task_metrics(run.tasks, targets, predictions),
        oracle=None if oracle is None else _oracle_metrics(run, oracle, chosen, cache.layout.num_rows, targets),
        by=_by_facet(run, cache, chosen, targets, predictions),
        targets=targets,
        predictions=predictions,
    )


def _oracle_metrics(run: TrainedRun, path: Path, chosen: Int[np.ndarray, " N"], num_rows: int, targets: Float[np.ndarray, "N T"]) -> dict[str, Metrics]:
    """Return the metrics of the noise-free outcomes, the best that any model can reach; `path` has the table's rows in the table's order."""
    if not path.is_file():
        raise RunError(f"there is no oracle file {path}")
    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    if len(frame) != num_rows:
        raise RunError(f"the oracle {path} has {len(frame):,} rows, the cache {num_rows:,}: it belongs to another table")
    known = [number for number, task in enumerate(run.tasks) if task.column in frame.columns]
    best = np.full(targets.shape, np.nan)
    for number in known:
        best[:, number] = frame[run.tasks[number].column].cast(pl.Float64).to_numpy()[chosen]
    return task_metrics([run.tasks[number] for number in known], targets[:, known], best[:, known])


def _by_facet(
    run: TrainedRun, cache: Cache, chosen: Int[np.ndarray, " N"], targets: Float[np.ndarray, "N T"], predictions: Float[np.ndarray, "N T"]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return metrics for each value of each `report_by` column."""
    codes = cache.rows().facets[chosen]
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for place, (column, values) in enumerate(cache.layout.facets):
        table = {}
        for code in np.unique(codes[:, place]):
            inside = codes[:, place] == code
            if inside.sum() >= LEAST_ROWS:
                table[values[code]] = {"rows": int(inside.sum()), **task_metrics(run.tasks, targets[inside], predictions[inside])}
        tables[column] = table
    return tables


def summary(run: TrainedRun, evaluation: Evaluation) -> str:
    """Return the evaluation as plain text: one line per metric, with goal, verdict and oracle, then the first breakdown."""
    lines = [f"{run.folder}: {evaluation.split} rows {len(evaluation.targets):,}, checkpoint '{run.moment}' (epoch {run.epoch})"]
    if run.standin:
        lines.append("The encoder is a STAND-IN without published weights: the numbers show the software, not the chemistry.")
    lines.append(f"{'target':32} {'metric':10} {'value':>9} {'goal':>9} {'':6} {'oracle':>9} {'share':>7}")
    for task in run.tasks:
        for metric, value in evaluation.metrics[task.column].items():
            goal = task.goals.get(metric)
            best = (evaluation.oracle or {}).get(task.column, {}).get(metric)
            verdict = {True: "pass", False: "FAIL", None: ""}[None if goal is None else reaches(metric, value, goal)]
            share = f"{value / best:7.1%}" if metric == "r2" and value is not None and best else ""
            lines.append(f"{task.column:32} {metric:10} {_number(value)} {_number(goal)} {verdict:6} {_number(best)} {share}".rstrip())
    for column, table in list(evaluation.by.items())[:1]:
        task = run.tasks[0]
        metric = next(iter(evaluation.metrics[task.column]))
        shown = list(table.items())[:12]
        lines.append(f"{task.column} {metric} by {column}: " + ", ".join(f"{value} {_number(entry[task.column][metric]).strip()}" for value, entry in shown))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{value:9.4f}" if value is not None else f"{'-':>9}"
