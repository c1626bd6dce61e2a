"""Which plots of an evaluated run are drawn, and what is written beside each."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fusionnet.evaluation.evaluate import Evaluation
from fusionnet.evaluation.figures import (
    MOST_VALUES,
    STYLE,
    Record,
    by_value,
    calibration,
    history,
    losses,
    parity,
)
from fusionnet.trained.run import TrainedRun

FOCAL_REMARK = (
    " Focal loss and class weights move probabilities away from frequencies; the ranking (AUROC) is"
    " what they are good for."
)


class Drawing(NamedTuple):
    """A figure, the stem of its file, and what is written beside it."""

    name: str
    title: str
    remark: str
    figure: Figure


@dataclass(frozen=True)
class Plot:
    """One drawn plot, and what its reader must know."""

    path: Path
    title: str
    remark: str


def draw_plots(
    run: TrainedRun, evaluation: Evaluation, records: list[Record], folder: Path
) -> list[Plot]:
    """Write the plots of an evaluation and of the epochs' records as PNG files, and return them.

    They come in the order in which they are read; earlier files are deleted.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    plots = []
    with mpl.rc_context(STYLE):
        for drawing in chain(
            _of_targets(run, evaluation), _of_groups(run, evaluation), _of_epochs(run, records)
        ):
            path = folder / f"{drawing.name}.png"
            drawing.figure.savefig(path)
            plots.append(Plot(path, drawing.title, drawing.remark))
    return plots


def _of_targets(run: TrainedRun, evaluation: Evaluation) -> Iterator[Drawing]:
    """Yield one drawing per target that has labels: predictions against what was observed."""
    for number, task in enumerate(run.tasks):
        observed = np.isfinite(evaluation.targets[:, number])
        target = evaluation.targets[observed, number]
        prediction = evaluation.predictions[observed, number]
        if not len(target):
            continue
        if task.kind == "regression":
            yield Drawing(
                f"parity_{task.name}",
                f"{task.column}: predicted against observed",
                "Line: perfect prediction.",
                parity(target, prediction, task),
            )
        else:
            remark = "Line: perfect calibration. Bars: rows per bin."
            yield Drawing(
                f"calibration_{task.name}",
                f"{task.column}: observed frequency against predicted probability",
                remark + FOCAL_REMARK if task.loss_name == "focal" else remark,
                calibration(target, prediction),
            )


def _of_groups(run: TrainedRun, evaluation: Evaluation) -> Iterator[Drawing]:
    """Yield one drawing per `report_by` column of several values: the first target's error."""
    task = run.tasks[0]
    metric = "mae" if task.kind == "regression" else "accuracy"
    for column, table in evaluation.by.items():
        if len(table) < 2:
            continue
        remark = f"Dashed: all {evaluation.split} rows."
        if evaluation.oracle is not None:
            remark += " Diamonds: the oracle, that is, noise alone."
        if len(table) > MOST_VALUES:
            remark += f" The {MOST_VALUES} of {len(table):,} values with the most rows."
        yield Drawing(
            f"by_{column}",
            f"{task.column}: {metric.upper()} by {column}",
            remark,
            by_value(table, evaluation.metrics[task.column][metric], task, metric),
        )


def _of_epochs(run: TrainedRun, records: list[Record]) -> Iterator[Drawing]:
    """Yield the losses and the first task's metrics by epoch."""
    remark = "Line: the checkpoint shown."
    if run.recipe.loss.uncertainty != "none":
        remark = f"The multi-task loss holds learned log-variances, so it may be negative. {remark}"
    task = run.tasks[0]
    yield Drawing("training_loss", "Loss by epoch", remark, losses(records, run.epoch))
    yield Drawing(
        "training_metrics",
        f"{task.column} on validation rows by epoch",
        "",
        history(records, run.epoch, task),
    )
