"""The names of what an evaluation writes."""

import re
from pathlib import Path
from typing import NamedTuple

from embedcache.config.split import SPLITS

_LONGEST = 50  # characters, of at most four bytes each; names have 255


class EvaluationFiles(NamedTuple):
    """The metrics as JSON, the page, and the folder of the page's plots."""

    metrics: Path
    report: Path
    plots: Path


def evaluation_files(folder: Path, split: str) -> EvaluationFiles:
    """Return where the evaluation of a split lies in a folder.

    Names of other splits than test end in theirs, so looking at one never overwrites another.
    """
    suffix = _suffix(split)
    return EvaluationFiles(
        folder / f"metrics{suffix}.json", folder / f"report{suffix}.html", folder / f"plots{suffix}"
    )


def comparison_file(folder: Path, split: str, against: Path) -> Path:
    """Return where the comparison with another run, by its folder, lies in a folder."""
    name = re.sub(r"[^\w-]+", "_", against.resolve().name)[:_LONGEST]
    return folder / f"against_{name}{_suffix(split)}.json"


def _suffix(split: str) -> str:
    return "" if split == SPLITS[-1] else f"_{split}"
