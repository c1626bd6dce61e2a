"""The figure of importances: columns by how much the error grows, groups of them below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from embedcache.text import visible
from fusionnet.evaluation.figures import ACCENT, DARK, LIGHT, LONGEST_NAME
from fusionnet.explain.columnsets import SINGLE
from fusionnet.explain.saved import ErrorOfTarget, Importance

MOST_COLUMNS = 25  # of each kind, in one figure


def ranked(importances: Sequence[Importance], column: str) -> list[Importance]:
    """Return what has an importance for a target, the largest first."""
    known = [each for each in importances if column in each.increases]
    return sorted(known, key=lambda each: -each.increases[column].mean)


def importance_figure(
    importances: Sequence[Importance], column: str, error: ErrorOfTarget, counted_by: str
) -> Figure:
    """Return a dot plot: single columns above, groups of columns below, the largest on top."""
    every = ranked(importances, column)
    panels = [
        [each for each in every if each.kind in SINGLE][:MOST_COLUMNS],
        [each for each in every if each.kind not in SINGLE][:MOST_COLUMNS],
    ]
    heights = [0.6 + len(each) for each in panels]
    figure = Figure(figsize=(6.4, 1.3 + 0.2 * sum(heights)), layout="constrained")
    both = figure.subplots(2, 1, height_ratios=heights, sharex=True)
    for axes, shown in zip(both, panels, strict=True):
        _dots(axes, shown[::-1], column)
    figure.suptitle(f"{visible(column, LONGEST_NAME)}: what its error grows by, shuffled", size=10)
    unit = f" [{visible(error.unit, LONGEST_NAME)}]" if error.unit else ""
    both[0].set_ylabel("columns")
    both[1].set_ylabel("groups")
    both[1].set_xlabel(
        f"growth of the {error.name}{unit}; bars: standard error over"
        f" {visible(counted_by, LONGEST_NAME)}"
    )
    return figure


def _dots(axes: Any, shown: Sequence[Importance], column: str) -> None:
    places = np.arange(len(shown))
    increases = [each.increases[column] for each in shown]
    means = [each.mean for each in increases]
    errors = [each.standard_error or 0.0 for each in increases]
    axes.axvline(0, color=ACCENT, linewidth=0.9)
    axes.hlines(places, 0, means, color=LIGHT, linewidth=0.8)
    axes.errorbar(
        means, places, xerr=errors, fmt="o", color=DARK, markersize=4, linewidth=1, capsize=2
    )
    names = [visible(each.name, LONGEST_NAME) for each in shown]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(ylim=(-0.7, len(shown) - 0.3))
