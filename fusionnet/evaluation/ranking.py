"""How well scores tell positives from the rest, at every threshold: ROC and precision-recall.

Axes: N rows, K thresholds.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from fusionnet.config.tasks import prediction_columns
from fusionnet.evaluation.figures import ACCENT, DARK
from fusionnet.evaluation.plots import Drawing
from fusionnet.evaluation.result import Evaluation
from fusionnet.trained.run import TrainedRun


class Thresholds(NamedTuple):
    """What is found and missed at each distinct score, from the largest on."""

    false_rate: Float[np.ndarray, " K"]
    recall: Float[np.ndarray, " K"]
    precision: Float[np.ndarray, " K"]


def thresholds(positive: Bool[np.ndarray, " N"], score: Float[np.ndarray, " N"]) -> Thresholds:
    """Return the rates at each distinct score; there is a row of either class."""
    order = np.argsort(-score, kind="stable")
    hits, called = np.cumsum(positive[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(score[order]) != 0, True)  # rows of one score are called together
    hits, called = hits[last], called[last]
    num_positive = int(positive.sum())
    false_rate = (called - hits) / (len(order) - num_positive)
    return Thresholds(false_rate, hits / num_positive, hits / called)


def ranking_drawings(run: TrainedRun, evaluation: Evaluation) -> Iterator[Drawing]:
    """Yield one drawing per binary target whose rows are of both classes."""
    columns = prediction_columns(run.tasks)
    for place, (task, own) in enumerate(zip(run.tasks, columns, strict=True)):
        label = evaluation.targets[:, place]
        known = np.isfinite(label)
        positive = label[known] > 0.5
        if task.kind != "binary" or not positive.any() or positive.all():
            continue
        found = thresholds(positive, evaluation.scores[known, own.start])
        remark = (
            "Left, ROC: of all positives the share that is found, against the share of negatives"
            " called positive. Right: the share of rows called positive that are, as more are"
            " found. Dashed: guessing. Dots: a score of 0.5."
        )
        title = f"{task.column}: every threshold"
        score = evaluation.scores[known, own.start]
        yield Drawing(f"ranking_{task.name}", title, remark, _figure(found, positive, score))


def _figure(
    found: Thresholds, positive: Bool[np.ndarray, " N"], score: Float[np.ndarray, " N"]
) -> Figure:
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    guess = {"color": ACCENT, "linewidth": 1.0, "linestyle": "--"}
    roc.plot([0, 1], [0, 1], **guess)
    roc.plot([0, *found.false_rate], [0, *found.recall], color=DARK, linewidth=1.4)
    roc.set(xlabel="false positives", ylabel="recall")
    roc.set_title("ROC", fontsize=9)
    precision.axhline(positive.mean(), **guess)
    precision.plot(found.recall, found.precision, color=DARK, linewidth=1.4)
    precision.set(xlabel="recall", ylabel="precision")
    precision.set_title("precision and recall", fontsize=9)
    called = score > 0.5
    hits = (called & positive).sum()
    recall, false_rate = hits / positive.sum(), (called & ~positive).sum() / (~positive).sum()
    roc.plot(false_rate, recall, "o", color=ACCENT, markersize=5)
    if called.any():
        precision.plot(recall, hits / called.sum(), "o", color=ACCENT, markersize=5)
    for axes in (roc, precision):
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.02), aspect="equal")
    return figure
