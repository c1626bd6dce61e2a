"""Predictions as a frame, with names: numbers, and classes as the table calls them."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from fusionnet.config.tasks import Task, prediction_columns


def prediction_names(tasks: Sequence[Task]) -> list[str]:
    """Return the columns of `prediction_frame`."""
    names = []
    for task in tasks:
        names.append(f"predicted_{task.column}")
        if task.has_codes:
            names += [f"probability_{task.column}_{label}" for label in task.classes or ()]
    return names


def prediction_frame(
    tasks: Sequence[Task],
    predictions: Float[np.ndarray, "B P"],
    scores: Float[np.ndarray, "B P"],
) -> pl.DataFrame:
    """Return predictions as a frame: `predicted_<column>`, a number or the name of a class.

    Of several classes the one with the largest score, followed by `probability_<column>_<class>`
    for each. What is NaN is null for a class.
    """
    columns: dict[str, pl.Series] = {}
    for task, own in zip(tasks, prediction_columns(tasks), strict=True):
        name, values = f"predicted_{task.column}", predictions[:, own]
        if not task.has_codes:
            columns[name] = pl.Series(values[:, 0])
            continue
        classes = task.classes or ()
        score = scores[:, own]
        codes = np.where(np.isfinite(score).all(1), score.argmax(1), np.nan)
        columns[name] = labels_in_words(task, codes)
        for k, label in enumerate(classes):
            columns[f"probability_{task.column}_{label}"] = pl.Series(values[:, k])
    return pl.DataFrame(columns)


def labels_in_words(task: Task, labels: Float[np.ndarray, " B"]) -> pl.Series:
    """Return labels as the table has them: numbers, or the classes' names; null where NaN."""
    if not task.has_codes:
        return pl.Series(labels).fill_nan(None)
    codes = pl.Series(labels).fill_nan(None).cast(pl.Int64)
    return pl.Series(task.classes or (), dtype=pl.String).gather(codes)
