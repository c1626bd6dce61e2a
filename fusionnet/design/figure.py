"""The picture of a search: the front, the top designs, and some of all that was looked at.

Axes: N designs, O objectives.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from embedcache.text import count_of, visible
from fusionnet.design.objectives import Objective
from fusionnet.evaluation.figures import ACCENT, DARK, LIGHT, LONGEST_NAME

COLOURS = mpl.colormaps["cividis"]  # told apart by lightness alone


def front_figure(
    title: str,
    objectives: Sequence[Objective],
    some: Float64[np.ndarray, "_ O"],
    front: Float64[np.ndarray, "_ O"],
    top: Float64[np.ndarray, "_ O"],
) -> Figure:
    """Return two objectives against each other, the third as colour; of one its values in order.

    All are in raw units; `some` are candidates of all kinds, `top` the best in their order.
    """
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.add_subplot()
    x, y = (0, 1) if len(objectives) > 1 else (None, 0)
    across = {"some": _column(some, x), "front": _column(front, x), "top": _column(top, x)}
    what = f"some of the designs ({len(some):,})"
    axes.scatter(across["some"], some[:, y], s=5, color=LIGHT, alpha=0.5, linewidths=0, label=what)
    shown: dict[str, Any] = {"s": 26, "edgecolors": DARK, "linewidths": 0.5, "zorder": 2}
    label = f"Pareto front ({count_of(len(front), 'design')})"
    if len(objectives) > 2:
        shown |= {"c": front[:, 2], "cmap": COLOURS}
        points = axes.scatter(across["front"], front[:, y], label=label, **shown)
        figure.colorbar(points, ax=axes, label=axis_title(objectives[2]), shrink=0.85)
    else:
        axes.scatter(across["front"], front[:, y], label=label, color=DARK, **shown)
    _mark_top(axes, across["top"], top[:, y])
    axes.set_xlabel("place in the order of rewards" if x is None else axis_title(objectives[x]))
    axes.set_ylabel(axis_title(objectives[y]))
    axes.set_title(visible(title), fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def axis_title(objective: Objective) -> str:
    """Return an objective with its unit, and which side is better."""
    unit = visible(objective.task.unit, LONGEST_NAME)
    side = "more" if objective.more_is_better else "less"
    name = visible(objective.title, LONGEST_NAME)
    return f"predicted {name}{f' [{unit}]' if unit else ''}, {side} is better"


def _mark_top(axes: Axes, across: Float64[np.ndarray, " N"], up: Float64[np.ndarray, " N"]) -> None:
    """Mark the top designs by a ring each, with their places in a column beside them."""
    ring: dict[str, Any] = {"s": 70, "facecolors": "none", "edgecolors": ACCENT, "zorder": 3}
    label = f"top {len(up)} by reward, numbered"
    axes.scatter(across, up, label=label, linewidths=1.4, **ring)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, high - low
    is_right = (across.mean() - left) / width > 0.5  # there is more room at their left
    column = across.min() - 0.12 * width if is_right else across.max() + 0.12 * width
    gap = 0.045 * height
    lowest = np.clip(up.mean() - gap * (len(up) - 1) / 2, low + gap, high - gap * len(up))
    line = {"arrowstyle": "-", "color": ACCENT, "linewidth": 0.5, "shrinkB": 4}
    beside: dict[str, Any] = {"fontsize": 8, "color": ACCENT, "va": "center", "zorder": 4}
    for level, row in enumerate(np.lexsort((-across, up)).tolist()):
        end = (column, lowest + gap * level)
        beside["ha"] = "right" if is_right else "left"
        axes.annotate(str(row + 1), (across[row], up[row]), end, arrowprops=line, **beside)


def _column(values: Float64[np.ndarray, "N O"], x: int | None) -> Float64[np.ndarray, " N"]:
    """Return an objective, or without one the places of the rows."""
    return np.arange(1.0, len(values) + 1) if x is None else values[:, x]
