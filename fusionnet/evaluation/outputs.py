"""The names of what an evaluation writes."""

from pathlib import Path
from typing import NamedTuple

from embedcache.config.split import SPLITS


class EvaluationFiles(NamedTuple):
    """The metrics as JSON, the page, and the folder of the page's plots."""

    metrics: Path
    report: Path
    plots: Path


def evaluation_files(folder: Path, split: str) -> EvaluationFiles:
    """Return where the evaluation of a split lies in a folder.

    Names of other splits than test end in theirs, so looking at one never overwrites another.
    """
    suffix = "" if split == SPLITS[-1] else f"_{split}"
    return EvaluationFiles(
        folder / f"metrics{suffix}.json", folder / f"report{suffix}.html", folder / f"plots{suffix}"
    )
