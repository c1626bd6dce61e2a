"""Pictures in the house's look: panels of bars, and axes on which a benchmark draws itself."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.harness.cells import number

matplotlib.use("Agg")

# Apart in lightness too, so that they are told apart in grey.
COLORS = {
    "ours": "#c8641e",  # orange
    "plain": "#8d99a6",
    "dark": "#1f3a5f",
    "light": "#a9c4de",
    "mid": "#5b7fa6",
}
PHASE_COLORS = (
    *("#101820", "#c8641e", "#1f3a5f", "#dfe4ea"),
    *("#5b7fa6", "#f0b48a", "#8d99a6", "#f4f4f2"),
)
MARKERS = "osD^vPX*"
MOST_BESIDE, COLUMNS_OF_MANY = 4, 3  # panels in one row; of more than that
LIMIT_LINES = (("--", "dashed"), (":", "dotted"))


class Panel(NamedTuple):
    """One quantity of several things, as bars."""

    title: str
    unit: str  # what the axis says
    # by name: a value, or a value with the low and high end of its spread
    bars: Mapping[str, float | tuple[float, float, float]]
    limits: Mapping[str, float] = {}  # lines across all bars, by name
    ours: Container[str] = ()  # the bars in the house's colour


Drawing = Panel | Callable[[Any], None]  # a function draws on the axes it is given


def draw(path: Path, drawings: Sequence[Drawing], size: tuple[float, float] | None = None) -> None:
    """Draw panels side by side, many of them in several rows; names that all share are written
    once a row.

    `size` is the figure's width and height in inches; unset, it follows from the panels' bars.
    """
    panels = [each for each in drawings if isinstance(each, Panel)]
    shared = len(panels) == len(drawings) and len({tuple(panel.bars) for panel in panels}) == 1
    num_columns = len(drawings) if len(drawings) <= MOST_BESIDE else COLUMNS_OF_MANY
    num_rows = -(-len(drawings) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=size or _size(panels, num_columns, num_rows),
        layout="constrained",
        squeeze=False,
    )
    for unused in axes.flat[len(drawings) :]:
        unused.set_axis_off()
    for index, (each, drawing) in enumerate(zip(axes.flat, drawings, strict=False)):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        each.set_axisbelow(True)
        if isinstance(drawing, Panel):
            draw_panel(each, drawing)
        else:
            drawing(each)
        if index % num_columns and shared:
            each.set_yticklabels([])
    save(figure, path)


def _size(panels: Sequence[Panel], num_columns: int, num_rows: int) -> tuple[float, float]:
    """Return width and height in inches, with room for the longest name and the most bars."""
    longest = max(len(name) for panel in panels for name in panel.bars)
    usual = {1: 8.0, 2: 11.0}.get(num_columns, 4.2 * num_columns)
    height = 1.5 + 0.38 * max(len(each.bars) for each in panels)
    return usual + 0.07 * max(0, longest - 40), num_rows * height


def draw_panel(axes: Any, panel: Panel) -> None:
    """Draw bars with their spreads and values, and the limits, which the axis names."""
    names = list(panel.bars)[::-1]
    values = [panel.bars[name] for name in names]
    spreads = [value if isinstance(value, tuple) else (value, value, value) for value in values]
    middle, low, high = np.array(spreads, dtype=np.float64).T
    colors = [COLORS["ours" if name in panel.ours else "light"] for name in names]
    axes.barh(names, middle, height=0.7, color=colors)
    if any(isinstance(value, tuple) for value in values):
        errors = np.clip([middle - low, high - middle], 0, None)
        style = {"fmt": "none", "ecolor": "black", "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(middle, names, xerr=errors, **style)
    # a line behind a number would hide it
    style = {"va": "center", "fontsize": 8, "xytext": (5, 0), "textcoords": "offset points"}
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    for name, value, end in zip(names, middle, high, strict=True):
        axes.annotate(number(value), (end, name), bbox=box, **style)
    said = _draw_limits(axes, panel.limits)
    axes.set_xlim(0, 1.2 * max([*high, *panel.limits.values()]))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(False, axis="y")
    axes.set_xlabel("\n".join([panel.unit, *([", ".join(said)] if said else [])]), fontsize=9)
    axes.set_title(panel.title, fontsize=10)


def _draw_limits(axes: Any, limits: Mapping[str, float]) -> list[str]:
    """Draw a line for each limit and return what each line says."""
    said = []
    for (name, value), (style, word) in zip(limits.items(), LIMIT_LINES, strict=False):
        axes.axvline(value, color=COLORS["dark"], linewidth=1.2, linestyle=style)
        said.append(f"{word}: {name}, {number(value)}")
    return said


def draw_rates(axes: Any, rates: Mapping[str, float], ours: Container[str], unit: str) -> None:
    """Draw bars on a logarithmic axis, for rates that are hundreds of times apart."""
    names = list(rates)[::-1]
    values = [rates[name] for name in names]
    colors = [COLORS["ours" if name in ours else "plain"] for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, [number(value) for value in values], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 5)
    axes.set_xlabel(unit)


def save(figure: Any, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
