"""Plots and a self-contained HTML page of one evaluated run, drawn for people: readable in grey, axes with units."""

import base64
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionnet.evaluate import Evaluation
from fusionnet.metrics import reaches
from fusionnet.run import TrainedRun

DARK, MIDDLE, LIGHT = "#1b3a5c", "#c8641e", "#8fa3b8"  # told apart by lightness alone
MOST_BARS = 24
MOST_TABLE_ROWS = 60


def write_report(run: TrainedRun, evaluation: Evaluation, about: dict[str, Any]) -> Path:
    """Write plots/*.png and report.html into the run folder and return the page's path."""
    plots = run.folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = [(title, _draw(plots / name, draw)) for name, title, draw in _plots(run, evaluation)]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        resources.files("fusionnet").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        run=run,
        evaluation=evaluation,
        about=about,
        records=run.records,
        shown=[key for key in run.records[0] if key.endswith(("_mae", "_r2", "_auroc", "_f1"))],
        lines=_metric_lines(run, evaluation),
        groups=[(column, _group_lines(run, table)) for column, table in evaluation.by.items()],
        group_heads=[(task.column, metric) for task, metric in _group_metrics(run)],
        plots=[(title, base64.b64encode(path.read_bytes()).decode()) for title, path in drawn],
        config=json.dumps(run.config, indent=1),
    )
    path = run.folder / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _metric_lines(run: TrainedRun, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one entry per target and metric: value, goal, verdict, oracle."""
    lines = []
    for task in run.tasks:
        for metric, value in evaluation.metrics[task.column].items():
            goal = task.goals.get(metric)
            oracle = (evaluation.oracle or {}).get(task.column, {}).get(metric)
            reached = None if goal is None else reaches(metric, value, goal)
            lines.append({"column": task.column, "unit": task.unit, "metric": metric, "value": value, "goal": goal, "reached": reached, "oracle": oracle})
    return lines


def _group_metrics(run: TrainedRun) -> list[tuple[Any, str]]:
    """Return the metrics of the breakdown tables: the first regression's and the first binary task's."""
    regression = [(task, metric) for task in run.tasks if task.kind == "regression" for metric in ("mae", "r2")][:2]
    return regression + [(task, metric) for task in run.tasks if task.kind == "binary" for metric in ("auroc", "f1")][:2]


def _group_lines(run: TrainedRun, table: dict[str, dict[str, Any]]) -> list[tuple[str, int, list[float | None]]]:
    metrics = _group_metrics(run)
    return [(value, entry["rows"], [entry[task.column][metric] for task, metric in metrics]) for value, entry in list(table.items())[:MOST_TABLE_ROWS]]


def _plots(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, str, Callable[[Axes], None]]]:
    """Return (file, title, drawing) of each plot."""
    plots: list[tuple[str, str, Callable[[Axes], None]]] = [("training.png", "Training and validation loss", lambda axes: _curves(axes, run))]
    for number, task in enumerate(run.tasks):
        observed = np.isfinite(evaluation.targets[:, number])
        target, prediction = evaluation.targets[observed, number], evaluation.predictions[observed, number]
        if task.kind == "regression":
            plots.append((f"{task.name}.png", f"{task.column}: predicted and observed", lambda a, t=target, p=prediction, k=task: _parity(a, t, p, k)))
        else:
            plots.append((f"{task.name}.png", f"{task.column}: calibration", lambda a, t=target, p=prediction: _calibration(a, t, p)))
    task = run.tasks[0]
    metric = "mae" if task.kind == "regression" else "f1"
    for column, table in evaluation.by.items():
        if 1 < len(table) <= MOST_BARS:
            plots.append((f"by_{column}.png", f"{task.column}: {metric} by {column}", lambda a, t=table, m=metric: _bars(a, t, task, m)))
    return plots


def _draw(path: Path, draw: Callable[[Axes], None]) -> Path:
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130}):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path)
    return path


def _curves(axes: Axes, run: TrainedRun) -> None:
    epochs = [record["epoch"] for record in run.records]
    axes.plot(epochs, [record["train_loss"] for record in run.records], color=DARK, marker="o", markersize=3, label="training")
    axes.plot(epochs, [record["val_loss"] for record in run.records], color=MIDDLE, marker="s", markersize=3, linestyle="--", label="validation")
    axes.axvline(run.epoch, color=LIGHT, linewidth=1)
    axes.set(xlabel="epoch (line: the checkpoint shown)", ylabel="multi-task loss")
    axes.legend(frameon=False)


def _parity(axes: Axes, target: np.ndarray, prediction: np.ndarray, task: Any) -> None:
    low, high = float(min(target.min(), prediction.min())), float(max(target.max(), prediction.max()))
    axes.hexbin(target, prediction, gridsize=60, extent=(low, high, low, high), bins="log", cmap="Greys", mincnt=1, linewidths=0)
    axes.plot([low, high], [low, high], color=MIDDLE, linewidth=1)
    unit = f" [{task.unit}]" if task.unit else ""
    axes.set(xlabel=f"observed {task.column}{unit}", ylabel=f"predicted{unit}", aspect="equal")


def _calibration(axes: Axes, target: np.ndarray, probability: np.ndarray) -> None:
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(probability, edges) - 1, 0, 9)
    filled = [number for number in range(10) if (bins == number).any()]
    axes.plot([0, 1], [0, 1], color=LIGHT, linewidth=1)
    means = [probability[bins == number].mean() for number in filled], [target[bins == number].mean() for number in filled]
    axes.plot(*means, color=DARK, marker="o", markersize=4)
    axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _bars(axes: Axes, table: dict[str, dict[str, Any]], task: Any, metric: str) -> None:
    entries = sorted(((entry[task.column][metric], value) for value, entry in table.items() if entry[task.column][metric] is not None), reverse=True)
    axes.barh([value for _, value in entries], [height for height, _ in entries], color=DARK, height=0.7)
    axes.tick_params(axis="y", labelsize=6 if len(entries) > 12 else 8)
    axes.set(xlabel=f"{metric} of {task.column}" + (f" [{task.unit}]" if task.unit and metric in ("mae", "rmse") else ""))
