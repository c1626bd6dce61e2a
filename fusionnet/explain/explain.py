"""A run explained: the importance of its columns, and the shares of its strings' tokens.

Axes: n rows, S distinct strings.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Int

from embedcache.config.split import SPLITS
from embedcache.errors import RunError
from fusionnet.config.tasks import Task
from fusionnet.evaluation.figures import STYLE
from fusionnet.evaluation.plots import file_stem
from fusionnet.evaluation.rows import WHOLE, RunRows
from fusionnet.explain.columnsets import column_sets
from fusionnet.explain.figures import importance_figure
from fusionnet.explain.permutation import importances, sample_of
from fusionnet.explain.rowerrors import described_errors, row_errors
from fusionnet.explain.saved import ErrorOfTarget, Explained, Importance
from fusionnet.explain.strings import explained_strings
from fusionnet.metrics import main_metrics
from fusionnet.trained.run import TrainedRun

# rows; with more, the same few patients would only be known to more digits
MOST_SAMPLED = 10_000
MOST_SAMPLED_BY_TREES = 2_000  # 2,000 trees take a millisecond of CPU a row, each time


# in our PNG files, which alone are deleted when they are no more among those that are drawn
AUTHOR = "fusionnet explain"


class Explanation(NamedTuple):
    """What was found, and pictures by the file's name: figures (PNG) and strings (SVG)."""

    explained: Explained
    pictures: dict[str, bytes]


def explain_rows(
    run: TrainedRun,
    given: RunRows,
    split: str,
    num_strings: int,
    repeats: int,
    most_rows: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Explanation:
    """Return what a run reads on the rows of a split, or on all rows where it is WHOLE.

    Of more than `most_rows` (None: as many as take minutes) a sample is drawn. `num_strings` of
    each column are attributed to their atoms, those of the most rows. Raises RunError for a split
    without rows.
    """
    rows = np.arange(len(given.block.split))
    if split != WHOLE:
        rows = np.flatnonzero(given.block.split == SPLITS.index(split))
    if not len(rows):
        raise RunError(f"{given.where} has no {split} rows")
    if most_rows is None:
        most_rows = MOST_SAMPLED if run.blend is None else MOST_SAMPLED_BY_TREES
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(rows, min(len(rows), most_rows), replace=False))
    sample = sample_of(run, given, chosen)
    sets = column_sets(run.layout, given.block, run.data.group if given.layout.groups else None)
    counted_by, counted = _counted(run, given, chosen)
    names = [each.names(run.layout) for each in sets]
    found = importances(run.tasks, sample, sets, names, counted, repeats, seed, progress)
    errors = row_errors(run.tasks, sample.targets, sample.predict(sample.inputs, ""))
    tasks = main_tasks(run.tasks)
    strings = explained_strings(run, given, chosen, tasks, num_strings, progress)
    described = described_errors(run.tasks, errors)
    figures, pngs = _figures(tasks, found, described, counted_by)
    explained = Explained(
        run_id=run.run_id,
        checkpoint=run.moment,
        epoch=run.epoch,
        split=split,
        rows=given.where,
        num_rows=len(rows),
        num_sampled=len(chosen),
        repeats=repeats,
        errors=described,
        shown=tuple(task.column for task in tasks),
        counted_by=counted_by,
        importances=tuple(found),
        figures=figures,
        strings=tuple(strings.strings),
        not_attributed=strings.not_attributed,
    )
    return Explanation(explained, pngs | strings.pictures)


def _figures(
    tasks: Sequence[Task],
    found: Sequence[Importance],
    errors: Mapping[str, ErrorOfTarget],
    counted_by: str,
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the names of the tasks' figures by column, and the figures by name."""
    names: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    with mpl.rc_context(STYLE):
        for task in tasks:
            if errors[task.column].value is None:
                continue
            figure = importance_figure(found, task.column, errors[task.column], counted_by)
            taken = [name.removesuffix(".png") for name in pictures]
            name = f"{file_stem(f'importance_{task.name}', taken)}.png"
            png = BytesIO()
            figure.savefig(png, format="png", metadata={"Author": AUTHOR})
            names[task.column], pictures[name] = name, png.getvalue()
    return names, pictures


def _counted(
    run: TrainedRun, given: RunRows, chosen: Int[np.ndarray, " n"]
) -> tuple[str, Int[np.ndarray, " n"]]:
    """Return over what standard errors are taken, and which of them each row is of."""
    if run.data.group is None or not given.layout.groups:
        return "row", np.arange(len(chosen))
    return run.data.group, given.block.group[chosen]


def main_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks of the largest weight."""
    return list({task.name: task for task, _ in main_metrics(tasks)}.values())
