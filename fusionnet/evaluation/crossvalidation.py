"""What a cross-validation found: each fold's metrics on its test rows, their mean and spread.

The folds' test rows are different rows, and each fold's model never saw its own; so the predictions
of all folds together are out-of-fold predictions of the table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embedcache.text import number, text_table
from fusionnet.config.tasks import Task
from fusionnet.metrics import Metrics, main_metrics

MetricsOf = Mapping[str, Metrics]  # by target column


@dataclass(frozen=True)
class FoldResult:
    """One fold: the metrics of a model on test rows that it never saw."""

    rotation: int
    num_train: int
    num_test: int
    epoch: int  # of the best checkpoint, which was evaluated
    metrics: MetricsOf
    baselines: Mapping[str, MetricsOf]  # by name; empty if not asked for

    def line(self, tasks: Sequence[Task], place: int, num_folds: int) -> str:
        """Return the fold in words, with the main metrics of the tasks; places count from 1."""
        main = [
            f"{task.column} {metric} {number(self.metrics[task.column][metric])}"
            for task, metric in main_metrics(tasks)
        ]
        return (
            f"fold {place} of {num_folds} (rotation {self.rotation}): {self.num_train:,} train"
            f" rows, best epoch {self.epoch}, {self.num_test:,} test rows: {', '.join(main)}"
        )


@dataclass(frozen=True)
class CrossValidation:
    """All folds of a cross-validation, and where its files are."""

    folder: Path
    tasks: tuple[Task, ...]
    num_rows: int  # of the table
    folds: tuple[FoldResult, ...]

    @property
    def file(self) -> Path:
        """The out-of-fold predictions, one row per table row."""
        return self.folder / "out_of_fold.parquet"

    @property
    def predictions(self) -> pl.DataFrame:
        """The out-of-fold predictions: `row`, `fold`, and observed_ and predicted_<column>.

        Rows that no fold tests have nulls.
        """
        return pl.read_parquet(self.file)

    @property
    def mean(self) -> dict[str, Metrics]:
        """The mean over folds of each metric, by target column; None where a fold has none."""
        return _over_folds([fold.metrics for fold in self.folds], _mean)

    @property
    def sd(self) -> dict[str, Metrics]:
        """The standard deviation over folds of each metric (n - 1), by target column."""
        return _over_folds([fold.metrics for fold in self.folds], _sd)

    def to_json(self) -> dict[str, Any]:
        """Return all metrics, those of single folds with them."""
        names = self.folds[0].baselines
        return {
            "num_rows": self.num_rows,
            "mean": self.mean,
            "sd": self.sd,
            "baselines": {
                name: {
                    what: _over_folds([fold.baselines[name] for fold in self.folds], reduced)
                    for what, reduced in (("mean", _mean), ("sd", _sd))
                }
                for name in names
            },
            "folds": [fold_to_json(fold) for fold in self.folds],
        }

    def summary(self) -> str:
        """Return the main metrics by fold, all metrics' mean and spread, and the baselines."""
        main = [(task.column, metric) for task, metric in main_metrics(self.tasks)]
        heads = [f"{column} {metric}" for column, metric in main]
        rows = [("fold", "train rows", "test rows", "best epoch", *heads)]
        for fold in self.folds:
            values = [number(fold.metrics[column][metric]) for column, metric in main]
            counts = (fold.num_train, fold.num_test, fold.epoch)
            rows.append((str(fold.rotation), *(f"{count:,}" for count in counts), *values))
        mean, sd = self.mean, self.sd
        for name, found in (("mean", mean), ("sd", sd)):
            values = [number(found[column][metric]) for column, metric in main]
            rows.append((name, "", "", "", *values))
        spread = [("target", "metric", "mean", "sd")]
        for column, metrics in mean.items():
            for metric, value in metrics.items():
                spread.append((column, metric, number(value), number(sd[column][metric])))
        lines = [*text_table(rows), "", *text_table(spread, num_left=2)]
        if self.folds[0].baselines:
            lines += ["", *text_table([("mean of all folds", *heads), *self._beside(main)])]
        tested = sum(fold.num_test for fold in self.folds)
        if tested < self.num_rows:
            lines.append(f"{self.num_rows - tested:,} of {self.num_rows:,} rows test in no fold")
        return "\n".join([*lines, f"out-of-fold predictions: {self.file}"])

    def _beside(self, main: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
        """Return the means of the model's main metrics, and those of each baseline."""
        found = {"this model": [fold.metrics for fold in self.folds]}
        for name in self.folds[0].baselines:
            found[name] = [fold.baselines[name] for fold in self.folds]
        rows = []
        for name, of_folds in found.items():
            mean = _over_folds(of_folds, _mean)
            values = [mean.get(column, {}).get(metric) for column, metric in main]
            rows.append((name, *map(number, values)))
        return rows


def fold_to_json(fold: FoldResult) -> dict[str, Any]:
    """Return a fold as it is kept."""
    return {name: getattr(fold, name) for name in FoldResult.__dataclass_fields__}


def _over_folds(folds: Sequence[MetricsOf], reduced: Any) -> dict[str, Metrics]:
    """Return one number for each metric of each target; None where a fold has none."""
    found: dict[str, Metrics] = {}
    for column, metrics in folds[0].items():
        found[column] = {}
        for metric in metrics:
            values = [fold[column][metric] for fold in folds]
            known = [value for value in values if value is not None]
            found[column][metric] = reduced(known) if len(known) == len(values) else None
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _sd(values: Sequence[float]) -> float | None:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return spread if math.isfinite(spread) else None
