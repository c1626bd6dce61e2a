"""Plots of one evaluated run, drawn for people: readable in grey, axes with units, counts where
cells or bins differ in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusionnet.config import Task
from fusionnet.evaluation.evaluate import Evaluation
from fusionnet.trained.run import TrainedRun

Record = dict[str, Any]
DARK, ACCENT, LIGHT = "#1b3a5c", "#c8641e", "#9aa9b8"  # told apart by lightness alone
MOST_VALUES = 30  # of a column, in one plot
# a cell of one row is still to be seen
GREYS = ListedColormap(mpl.colormaps["Greys"](np.linspace(0.2, 1, 256)))
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": "#333333",
    "savefig.dpi": 170,
}


@dataclass(frozen=True)
class Plot:
    """One drawn plot, and what its reader must know."""

    path: Path
    title: str
    remark: str


def draw_plots(
    run: TrainedRun, evaluation: Evaluation, records: list[Record], folder: Path
) -> list[Plot]:
    """Write the plots of an evaluation and of the epochs' records as PNG files, in the order in
    which they are read; earlier ones are deleted.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    plots = []
    with mpl.rc_context(STYLE):
        for name, title, remark, figure in _figures(run, evaluation, records):
            figure.savefig(folder / f"{name}.png")
            plots.append(Plot(folder / f"{name}.png", title, remark))
    return plots


def _figures(
    run: TrainedRun, evaluation: Evaluation, records: list[Record]
) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield (file stem, title, remark, figure)."""
    for number, task in enumerate(run.tasks):
        observed = np.isfinite(evaluation.targets[:, number])
        target, prediction = (
            evaluation.targets[observed, number],
            evaluation.predictions[observed, number],
        )
        if not len(target):
            continue
        if task.kind == "regression":
            yield (
                f"parity_{task.name}",
                f"{task.column}: predicted against observed",
                "Line: perfect prediction.",
                _parity(target, prediction, task),
            )
        else:
            remark = "Line: perfect calibration. Bars: rows per bin."
            if task.loss_name == "focal":
                remark += (
                    " Focal loss and class weights move probabilities away from frequencies; the"
                    " ranking (AUROC) is what they are good for."
                )
            yield (
                f"calibration_{task.name}",
                f"{task.column}: observed frequency against predicted probability",
                remark,
                _calibration(target, prediction),
            )
    task = run.tasks[0]
    for column, table in evaluation.by.items():
        if len(table) > 1:
            metric = "mae" if task.kind == "regression" else "accuracy"
            remark = f"Dashed: all {evaluation.split} rows." + (
                " Diamonds: the oracle, that is, noise alone."
                if evaluation.oracle is not None
                else ""
            )
            remark += (
                f" The {MOST_VALUES} of {len(table):,} values with the most rows."
                if len(table) > MOST_VALUES
                else ""
            )
            yield (
                f"by_{column}",
                f"{task.column}: {metric.upper()} by {column}",
                remark,
                _by_value(table, evaluation, task, metric),
            )
    loss_remark = (
        "The multi-task loss holds learned log-variances, so it may be negative."
        if run.recipe.loss.uncertainty != "none"
        else ""
    )
    yield (
        "training_loss",
        "Loss by epoch",
        f"{loss_remark} Line: the checkpoint shown.".strip(),
        _losses(run, records),
    )
    yield (
        "training_metrics",
        f"{task.column} on validation rows by epoch",
        "",
        _history(run, task, records),
    )


def _axes(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _parity(
    target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, " N"], task: Task
) -> Figure:
    figure, axes = _axes()
    low, high = (
        float(min(target.min(), prediction.min())),
        float(max(target.max(), prediction.max())),
    )
    low, high = (low - 1, high + 1) if low == high else (low, high)
    if len(target) < 2000:
        axes.scatter(target, prediction, s=9, color=DARK, alpha=0.45, linewidths=0)
    else:
        cells = axes.hexbin(
            target,
            prediction,
            gridsize=55,
            extent=(low, high, low, high),
            bins="log",
            cmap=GREYS,
            mincnt=1,
            linewidths=0.1,
        )
        figure.colorbar(cells, ax=axes, label="rows per cell", shrink=0.8)
    axes.plot([low, high], [low, high], color=ACCENT, linewidth=1.2)
    unit = f" [{task.unit}]" if task.unit else ""
    axes.set(
        xlabel=f"observed {task.column}{unit}",
        ylabel=f"predicted{unit}",
        xlim=(low, high),
        ylim=(low, high),
        aspect="equal",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure


def _calibration(target: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> Figure:
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    edges = np.linspace(0, 1, 11)
    place = np.clip(np.digitize(probability, edges) - 1, 0, 9)
    num_rows = np.bincount(place, minlength=10)
    filled = num_rows > 0
    mean, rate = (
        np.bincount(place, values, minlength=10)[filled] / num_rows[filled]
        for values in (probability, target)
    )
    error = 1.96 * np.sqrt(rate * (1 - rate) / num_rows[filled])  # binomial, 95 %
    axes.plot([0, 1], [0, 1], color=ACCENT, linewidth=1.2)
    axes.errorbar(
        mean, rate, yerr=error, color=DARK, marker="o", markersize=4, linewidth=1.2, capsize=2
    )
    axes.set(ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1.02))
    counts.bar((edges[:-1] + edges[1:]) / 2, num_rows, width=0.09, color=LIGHT)
    counts.set(xlabel="predicted probability", ylabel="rows")
    return figure


def _by_value(
    table: dict[str, dict[str, Any]], evaluation: Evaluation, task: Task, metric: str
) -> Figure:
    """Return a dot plot: one line per value, the largest error on top."""
    entries = [
        (value, entry) for value, entry in table.items() if entry[task.column][metric] is not None
    ]
    entries = sorted(entries, key=lambda item: -item[1]["rows"])[:MOST_VALUES]
    entries.sort(key=lambda item: item[1][task.column][metric])
    figure, axes = _axes(height=max(1.6, 0.9 + 0.17 * len(entries)))
    place = np.arange(len(entries))
    values = [entry[task.column][metric] for _, entry in entries]
    axes.hlines(place, 0, values, color=LIGHT, linewidth=0.8)
    axes.plot(values, place, "o", color=DARK, markersize=5, label="model")
    best = [entry.get("oracle", {}).get(task.column, {}).get(metric) for _, entry in entries]
    if any(each is not None for each in best):
        known = [(each, at) for each, at in zip(best, place, strict=True) if each is not None]
        axes.plot(
            *zip(*known, strict=True),
            "D",
            color=ACCENT,
            markerfacecolor="white",
            markersize=4.5,
            label="oracle",
            linestyle="none",
        )
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
    overall = evaluation.metrics[task.column][metric]
    if overall is not None:
        axes.axvline(overall, color=DARK, linewidth=0.9, linestyle="--")
    axes.set_yticks(
        place,
        [f"{value} ({entry['rows']:,})" for value, entry in entries],
        fontsize=7 if len(entries) > 12 else 8,
    )
    unit = f" [{task.unit}]" if task.unit and metric == "mae" else ""
    axes.set(
        xlabel=f"{metric.upper()} of {task.column}{unit}; rows in brackets",
        xlim=(0, None),
        ylim=(-0.7, len(entries) - 0.3),
    )
    return figure


def _losses(run: TrainedRun, records: list[Record]) -> Figure:
    figure, axes = _axes()
    epochs = [record["epoch"] for record in records]
    axes.plot(
        epochs,
        [record["train_loss"] for record in records],
        color=DARK,
        marker="o",
        markersize=3.5,
        label="training",
    )
    axes.plot(
        epochs,
        [record["val_loss"] for record in records],
        color=ACCENT,
        marker="s",
        markersize=3.5,
        linestyle="--",
        label="validation",
    )
    axes.axvline(run.epoch, color=LIGHT, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="multi-task loss")
    axes.legend(frameon=False)
    return figure


def _history(run: TrainedRun, task: Task, records: list[Record]) -> Figure:
    """Return the first task's two main metrics by epoch, one above the other, with the goal where
    there is one.
    """
    shown = (
        (("mae", "MAE" + (f" [{task.unit}]" if task.unit else "")), ("r2", "R²"))
        if task.kind == "regression"
        else (("auroc", "AUROC"), ("f1", "F1"))
    )
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (metric, label) in zip(panels, shown, strict=True):
        found = [
            (record["epoch"], record[f"{task.name}_{metric}"])
            for record in records
            if record[f"{task.name}_{metric}"] is not None
        ]
        axes.plot(
            [epoch for epoch, _ in found],
            [value for _, value in found],
            color=DARK,
            marker="o",
            markersize=3.5,
        )
        axes.axvline(run.epoch, color=LIGHT, linewidth=1)
        if metric in task.goals:
            axes.axhline(
                task.goals[metric], color=ACCENT, linewidth=1, linestyle="--", label="goal"
            )
            axes.legend(frameon=False, fontsize=8)
        axes.set(ylabel=label)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set(xlabel="epoch")
    return figure
