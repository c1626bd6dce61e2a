"""Which plots of an evaluated run are drawn, and what is written beside each."""

import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from embedcache.text import visible
from fusionnet.config.tasks import prediction_columns
from fusionnet.evaluation.coverage import LEVEL
from fusionnet.evaluation.figures import (
    MOST_CLASSES,
    MOST_VALUES,
    STYLE,
    Record,
    by_value,
    calibration,
    confusion,
    history,
    losses,
    parity,
)
from fusionnet.evaluation.result import Evaluation
from fusionnet.metrics import spread_metric, title
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.run import TrainedRun

NO_PROBABILITY = "With reduction: batch a score ranks rows and is no probability."
# in our PNG files, which alone are deleted when they are no more among those that are drawn
AUTHOR = "fusionnet evaluate"
LETTERS_PER_INCH = 12.5  # of a title
LONGEST_STEM = 60  # in characters, at most 240 bytes


class Drawing(NamedTuple):
    """A figure, the name that its file is to have, and what is written beside it."""

    name: str
    title: str
    remark: str
    figure: Figure


@dataclass(frozen=True)
class Plot:
    """One drawn plot, and what its reader must know."""

    png: bytes
    title: str
    remark: str


def draw_plots(
    run: TrainedRun,
    evaluation: Evaluation,
    records: list[Record],
    folder: Path,
    more: Iterable[Drawing] = (),
) -> list[Plot]:
    """Write the plots of an evaluation and of the epochs' records as PNG files, and return them.

    They come in the order in which they are read, with `more` behind those of targets and groups;
    those of an earlier evaluation are replaced.
    """
    folder.mkdir(exist_ok=True)
    plots: dict[str, Plot] = {}
    with mpl.rc_context(STYLE):
        for drawing in chain(
            _of_targets(run, evaluation),
            _of_groups(run, evaluation),
            more,
            _of_epochs(run, records),
        ):
            _give_title(drawing)
            png = BytesIO()
            drawing.figure.savefig(png, format="png", metadata={"Author": AUTHOR})
            stem = file_stem(drawing.name, taken=plots.keys())
            plots[stem] = Plot(png.getvalue(), drawing.title, drawing.remark)
            write_listed(run.folder, run.run_id, folder / f"{stem}.png", png.getvalue())
    _delete_old(folder, {_spelling(stem) for stem in plots})
    return list(plots.values())


def _give_title(drawing: Drawing) -> None:
    """Write a drawing's title into it, so that a picture that is copied says what it is."""
    figure = drawing.figure
    letters = int(figure.get_figwidth() * LETTERS_PER_INCH)
    lines = textwrap.wrap(visible(drawing.title, 3 * letters), letters)
    style = {"fontsize": 9.5, "fontweight": "bold", "ha": "left", "x": 0.01}
    figure.suptitle("\n".join(lines), **style)


def file_stem(name: str, taken: Collection[str]) -> str:
    """Return a name as the stem of a file on any file system: letters, digits, `-` and `_`.

    It differs from those that are taken in more than upper and lower case.
    """
    stem = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name))[:LONGEST_STEM]
    known = {_spelling(each) for each in taken}
    numbered = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
    return next(each for each in numbered if _spelling(each) not in known)


def _spelling(stem: str) -> str:
    """Return what file systems that know neither case nor composed letters tell stems apart by."""
    return unicodedata.normalize("NFC", stem).casefold()


def _delete_old(folder: Path, drawn: Collection[str]) -> None:
    """Delete the plots of an earlier evaluation that are not drawn any more, and no other file."""
    for path in folder.glob("*.png"):
        if _spelling(path.stem) not in drawn and path.is_file():
            with path.open("rb") as stream:
                is_ours = AUTHOR.encode() in stream.read(200)
            if is_ours:
                path.unlink(missing_ok=True)


def _of_targets(run: TrainedRun, evaluation: Evaluation) -> Iterator[Drawing]:
    """Yield one drawing per target that has labels: predictions against what was observed."""
    for number, (task, columns) in enumerate(
        zip(run.tasks, prediction_columns(run.tasks), strict=True)
    ):
        observed = np.isfinite(evaluation.targets[:, number])
        target = evaluation.targets[observed, number]
        prediction = evaluation.predictions[observed, columns.start]
        if not len(target):
            continue
        if task.has_codes:
            chosen = evaluation.scores[observed, columns].argmax(1)
            remark = "Rows: observed; columns: predicted. Shades: shares of a row; numbers: rows."
            if (num_classes := task.num_classes) > MOST_CLASSES:
                remark += f" The {MOST_CLASSES} of {num_classes:,} classes with the most rows."
            yield Drawing(
                f"confusion_{task.name}",
                f"{task.column}: predicted against observed classes",
                remark,
                confusion(target.astype(np.int64), chosen, task),
            )
        elif task.kind == "regression":
            band, remark = evaluation.bands.get(task.column), "Line: perfect prediction."
            if band is not None and len(band) > 1:
                remark += f" Dashed: between which {LEVEL} % of the labels are promised to be."
            yield Drawing(
                f"parity_{task.name}",
                f"{task.column}: predicted against observed",
                remark,
                parity(target, prediction, task, band),
            )
        else:
            what = "predicted probability" if task.has_probability else "score"
            remark = (
                "Line: perfect calibration. Bars: rows per bin. Mean of the predictions"
                f" {prediction.mean():.3g}, of the labels {target.mean():.3g}."
            )
            yield Drawing(
                f"calibration_{task.name}",
                f"{task.column}: observed frequency against {what}",
                remark if task.has_probability else f"{remark} {NO_PROBABILITY}",
                calibration(target, prediction, what),
            )


def _of_groups(run: TrainedRun, evaluation: Evaluation) -> Iterator[Drawing]:
    """Yield one drawing per `report_by` column of several values: the first target's error."""
    task = run.tasks[0]
    metric = spread_metric(task)
    for column, table in evaluation.by.items():
        if len(table) < 2 or evaluation.metrics[task.column][metric] is None:
            continue
        remark = f"Dashed: all {evaluation.split} rows."
        if evaluation.oracle is not None:
            remark += " Diamonds: the oracle, that is, noise alone."
        if len(table) > MOST_VALUES:
            remark += f" The {MOST_VALUES} of {len(table):,} values with the most rows."
        yield Drawing(
            f"by_{column}",
            f"{task.column}: {title(metric)} by {column}",
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
