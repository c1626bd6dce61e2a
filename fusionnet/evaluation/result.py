"""What an evaluation found, and what metrics.json holds of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusionnet.evaluation.bootstrap import Confidence
from fusionnet.evaluation.breakdown import Breakdown
from fusionnet.evaluation.chances import Chances
from fusionnet.evaluation.comparison import Comparison
from fusionnet.evaluation.coverage import Coverage
from fusionnet.metrics import Metrics, macro_metrics, reaches
from fusionnet.trained.run import TrainedRun


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
    confidence: Confidence  # intervals of the metrics
    rows: Int[np.ndarray, " N"]  # their numbers in the table
    targets: Float[np.ndarray, "N T"]
    predictions: Float[np.ndarray, "N P"]  # probabilities of classes
    scores: Float[np.ndarray, "N P"]  # as metrics read them
    parts: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # of a blend, each alone
    remark: str = ""  # what a reader must know of the rows
    intervals: dict[str, Coverage] = field(default_factory=dict)  # by target column
    # by target column of numbers, see `band_of`
    bands: dict[str, Float[np.ndarray, "_B 3"]] = field(default_factory=dict)
    chances: dict[str, Chances] = field(default_factory=dict)  # by column of classes
    comparison: Comparison | None = None  # with another run

    def to_json(self, run: TrainedRun) -> dict[str, Any]:
        """Return what metrics.json holds.

        Metrics by split and target, those of baselines and oracle, verdicts on the goals,
        break-downs, and what was evaluated.
        """
        content: dict[str, Any] = {self.split: self.metrics}
        if macro := macro_metrics(run.tasks, self.metrics):
            content["macro"] = macro
        content["confidence"] = self.confidence.model_dump(mode="json")
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
