"""importance.json: what was found of a run's columns and strings, and where it lies.

It is written by `workflow.explaining`, and read again for the report of an evaluation of the same
rows. What is not understood is not read.
"""

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from embedcache.config.split import SPLITS
from embedcache.schema import Config


class ErrorOfTarget(Config):
    """The error by which a target's importances are told."""

    name: str  # MAE, MAE of log10, log loss
    unit: str
    value: float | None  # of the rows as they are; None where none is labelled


class Increase(Config):
    """How much larger a target's error is where some columns are shuffled."""

    mean: float  # over shuffles
    spread: float | None  # standard deviation over shuffles; None of a single one
    # of the mean, over groups (else rows): how much other ones of their kind would move it
    standard_error: float | None


class Importance(Config):
    """What shuffling some columns does to each target."""

    name: str
    kind: str  # number, one-hot, string, category, group of features, constant, all
    columns: tuple[str, ...]
    increases: dict[str, Increase]  # by target column


class Attribution(Config):
    """What the tokens of a string add to one target, from the string with masked tokens."""

    of: str  # what is predicted: the number, or the probability of a class
    unit: str
    prediction: float  # the mean over the string's rows
    masked: float  # the same where the tokens are masked
    gap: float  # what the parts of the path miss at most, as a share of the difference
    num_points: int  # of the path
    is_complete: bool
    tokens: tuple[float, ...]
    atoms: tuple[float, ...] | None  # None where the string is drawn as no structure
    rest: dict[str, float]  # what is on no atom, by token


class ExplainedString(Config):
    """One string: its tokens and atoms, and what each adds."""

    column: str
    text: str
    num_rows: int  # of the sample that have it
    tokens: tuple[str, ...]
    attributions: dict[str, Attribution]  # by target column
    picture: str | None  # a file's name
    remark: str = ""  # why there is no picture


class Explained(Config):
    """All that is known of what a run reads."""

    run_id: str
    checkpoint: str
    epoch: int
    split: str
    rows: str  # in words
    num_rows: int
    num_sampled: int
    repeats: int
    errors: dict[str, ErrorOfTarget]  # by target column
    shown: tuple[str, ...]  # target columns where there is room for few: those of largest weight
    counted_by: str  # whose spread the standard errors tell: the group column, or row
    importances: tuple[Importance, ...]
    figures: dict[str, str]  # by shown target column: a file's name
    strings: tuple[ExplainedString, ...]
    not_attributed: dict[str, str]  # why a string column has no attributions


class ExplainFiles(NamedTuple):
    """The numbers, the page, and the folder of pictures."""

    numbers: Path
    page: Path
    pictures: Path


def explain_files(folder: Path, split: str) -> ExplainFiles:
    """Return where an explanation lies in a folder.

    Names of other splits than test end in theirs.
    """
    suffix = "" if split == SPLITS[-1] else f"_{split}"
    return ExplainFiles(
        folder / f"importance{suffix}.json",
        folder / f"explain{suffix}.html",
        folder / f"explain{suffix}",
    )


def read_explained(file: Path) -> Explained | None:
    """Return what a file holds; None where there is none, or it is of another version."""
    try:
        return Explained.model_validate(json.loads(file.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None
