"""The figures of an evaluated run, drawn for people: readable in grey, axes with units.

Counts are shown where cells or bins differ in them.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from embedcache.text import visible
from fusionnet.config.tasks import Task
from fusionnet.metrics import main_metrics_of, title, unit_of

Record = dict[str, Any]  # of one epoch, as training logs it
DARK, ACCENT, LIGHT = "#1b3a5c", "#c8641e", "#9aa9b8"  # told apart by lightness alone
MOST_CLASSES = 20  # in a table of confusions
MOST_VALUES = 30  # of a column, in one plot
MOST_POINTS = 2000  # drawn one by one; more are counted per cell
# a cell of one row is still to be seen
GREYS = ListedColormap(mpl.colormaps["Greys"](np.linspace(0.2, 1, 256)))
LONGEST_NAME = 40  # of a column, a unit or a value, in characters; tables show the whole
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names come from tables: `$5^$` is no formula, and `$0-$5` is none
    "text.usetex": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": "#333333",
    "savefig.dpi": 170,
}


def parity(
    target: Float[np.ndarray, " N"],
    prediction: Float[np.ndarray, " N"],
    task: Task,
    band: Float[np.ndarray, "B 3"] | None = None,
) -> Figure:
    """Return predicted against observed values, as points or, of many rows, as counts per cell.

    `band` has predictions and the bounds between which labels are promised to be.
    """
    figure, axes = _axes()
    both = np.concatenate([target, prediction])
    low, high = float(both.min()), float(both.max())
    scale = "log" if task.transform == "log10" and low > 0 else "linear"
    if low == high:
        low, high = (low / 10, high * 10) if scale == "log" else (low - 1, high + 1)
    if len(target) < MOST_POINTS:
        axes.scatter(target, prediction, s=9, color=DARK, alpha=0.45, linewidths=0)
    else:
        extent = np.log10([low, high]) if scale == "log" else (low, high)
        area: dict[str, Any] = {"extent": (*extent, *extent), "gridsize": 55, "mincnt": 1}
        area |= {"xscale": scale, "yscale": scale}
        cells = axes.hexbin(target, prediction, bins="log", cmap=GREYS, linewidths=0.1, **area)
        count = StrMethodFormatter("{x:,.0f}")  # powers of ten would be formulas
        bar = figure.colorbar(cells, ax=axes, label="rows per cell", shrink=0.8, format=count)
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    axes.plot([low, high], [low, high], color=ACCENT, linewidth=1.2)
    if band is not None and len(band) > 1:
        for bound in (band[:, 1], band[:, 2]):
            axes.plot(bound, band[:, 0], color=ACCENT, linewidth=1, linestyle="--")
    unit = _unit(task.unit)
    axes.set(xlabel=f"observed {_name(task.column)}{unit}", ylabel=f"predicted{unit}")
    axes.set(xscale=scale, yscale=scale)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        if scale == "log":
            axis.set_major_locator(LogLocator(numticks=6))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure


def calibration(
    target: Float[np.ndarray, " N"], probability: Float[np.ndarray, " N"], what: str
) -> Figure:
    """Return observed frequency against probability, or `what`, in ten bins, above their rows."""
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    edges = np.linspace(0, 1, 11)
    number = np.clip(np.digitize(probability, edges) - 1, 0, 9)
    num_rows = np.bincount(number, minlength=10)
    filled = num_rows > 0
    mean = np.bincount(number, probability, minlength=10)[filled] / num_rows[filled]
    rate = np.bincount(number, target, minlength=10)[filled] / num_rows[filled]
    error = 1.96 * np.sqrt(rate * (1 - rate) / num_rows[filled])  # binomial, 95 %
    axes.plot([0, 1], [0, 1], color=ACCENT, linewidth=1.2)
    points = {"marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2}
    axes.errorbar(mean, rate, yerr=error, color=DARK, **points)
    axes.set(ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1.02))
    counts.bar((edges[:-1] + edges[1:]) / 2, num_rows, width=0.09, color=LIGHT)
    counts.set(xlabel=what, ylabel="rows")
    return figure


def confusion(label: Int[np.ndarray, " N"], chosen: Int[np.ndarray, " N"], task: Task) -> Figure:
    """Return how many rows of each observed class were predicted as each class."""
    names = task.classes or ()
    num_rows = np.bincount(label, minlength=len(names))
    shown = np.sort(np.argsort(-num_rows, kind="stable")[:MOST_CLASSES])
    counts = np.bincount(label * len(names) + chosen, minlength=len(names) ** 2)
    counts = counts.reshape(len(names), len(names))[np.ix_(shown, shown)]
    shares = counts / np.maximum(1, num_rows[shown])[:, None]
    size = 2.6 + 0.3 * len(shown)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else DARK
        text = f"{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    labels = [visible(names[k], 24) for k in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(shown)), labels)
    axes.set(xlabel="predicted", ylabel="observed")
    return figure


def by_value(
    table: dict[str, dict[str, Any]], overall: float | None, task: Task, metric: str
) -> Figure:
    """Return a dot plot: one line per value of a column, the largest error on top."""
    defined = [item for item in table.items() if item[1][task.column][metric] is not None]
    entries = sorted(defined, key=lambda item: -item[1]["rows"])[:MOST_VALUES]
    entries.sort(key=lambda item: item[1][task.column][metric])
    figure, axes = _axes(height=max(1.6, 0.9 + 0.17 * len(entries)))
    heights = np.arange(len(entries))
    values = [entry[task.column][metric] for _, entry in entries]
    axes.hlines(heights, 0, values, color=LIGHT, linewidth=0.8)
    axes.plot(values, heights, "o", color=DARK, markersize=5, label="model")
    _add_oracle(axes, [entry.get("oracle", {}) for _, entry in entries], task, metric)
    if overall is not None:
        axes.axvline(overall, color=DARK, linewidth=0.9, linestyle="--")
    labels = [f"{_name(value)} ({entry['rows']:,})" for value, entry in entries]
    axes.set_yticks(heights, labels, fontsize=7 if len(entries) > 12 else 8)
    unit = _unit(unit_of(task, metric))
    axes.set(xlabel=f"{title(metric)} of {_name(task.column)}{unit}; rows in brackets")
    axes.set(xlim=(0, None), ylim=(-0.7, len(entries) - 0.3))
    return figure


def losses(records: list[Record], shown: int) -> Figure:
    """Return training and validation loss by epoch; a line marks the epoch that is shown."""
    figure, axes = _axes()
    epochs = [record["epoch"] for record in records]
    train = [record["train_loss"] for record in records]
    axes.plot(epochs, train, color=DARK, marker="o", markersize=3.5, label="training")
    if validated := [record for record in records if record["val_loss"] is not None]:
        style: dict[str, Any] = {"color": ACCENT, "marker": "s", "markersize": 3.5}
        values = [record["val_loss"] for record in validated]
        epochs = [record["epoch"] for record in validated]
        axes.plot(epochs, values, label="validation", linestyle="--", **style)
    axes.axvline(shown, color=LIGHT, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="multi-task loss")
    axes.legend(frameon=False)
    return figure


def history(records: list[Record], shown: int, task: Task) -> Figure:
    """Return a task's two main metrics by epoch, one above the other, with goals if it has any."""
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, metric in zip(panels, main_metrics_of(task), strict=True):
        key = f"{task.name}_{metric}"
        defined = [record for record in records if record[key] is not None]
        epochs = [record["epoch"] for record in defined]
        values = [record[key] for record in defined]
        axes.plot(epochs, values, color=DARK, marker="o", markersize=3.5)
        axes.axvline(shown, color=LIGHT, linewidth=1)
        if metric in task.goals:
            line = {"color": ACCENT, "linewidth": 1, "linestyle": "--"}
            axes.axhline(task.goals[metric], label="goal", **line)
            axes.legend(frameon=False, fontsize=8)
        axes.set(ylabel=f"{title(metric)}{_unit(unit_of(task, metric))}")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set(xlabel="epoch")
    return figure


def _name(text: str) -> str:
    """Return a name of the table as a figure has room for it."""
    return visible(text, LONGEST_NAME)


def _unit(unit: str) -> str:
    """Return a unit behind a name, nothing where there is none."""
    return f" [{_name(unit)}]" if unit else ""


def _axes(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _add_oracle(axes: Axes, oracles: list[dict[str, Any]], task: Task, metric: str) -> None:
    """Mark the oracle's metric on the lines that have one."""
    best = [oracle.get(task.column, {}).get(metric) for oracle in oracles]
    known = [height for height, value in enumerate(best) if value is not None]
    if known:
        marks: dict[str, Any] = {"marker": "D", "markersize": 4.5, "linestyle": "none"}
        values = [best[height] for height in known]
        axes.plot(values, known, color=ACCENT, label="oracle", markerfacecolor="white", **marks)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
