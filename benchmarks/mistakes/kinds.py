"""A mistake: what a person has and does, and what should come of it; and how it is played.

Whatever the commands say is judged by code: the exit code, one message and no traceback, the words
that must be in it, and the numbers that were stored or predicted beside those of the clean table.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import zarr

from benchmarks.injection.cases import MESSAGE, Outcome
from benchmarks.injection.processes import Done, in_fork
from benchmarks.injection.scene import CONFIG, RUN, Scene
from embedcache.errors import UserError

TO_BUILD = ("encoder", "columns.yaml", CONFIG)
REFUSED, SAME, SAID = "refused", "as the clean table", "done, with a remark"
FRAME = ("RewardModel.load('run').predict(frame)",)
MOST_SHOWN = 420  # characters of an answer

Command = tuple[str, ...]
Bring = Callable[[Path, pl.DataFrame], object]  # into a folder, what a person makes of the table
Differences = Callable[[Path, Path], list[str]]  # of a folder's results from the finished ones


class Expected(NamedTuple):
    """What should come of a mistake."""

    verdict: str
    tells: tuple[str, ...]  # each is in the message, or in what a command that ends well prints
    differences: Differences = lambda folder, finished: []


class Mistake(NamedTuple):
    """Something that a person does, and what should come of it."""

    name: str
    source: str  # where it was reported: owner/repository#number
    expected: Expected
    bring: Bring = lambda folder, clean: None
    commands: tuple[Command, ...] = ()  # all but the last must end well
    frame: Callable[[pl.DataFrame], Any] | None = None  # instead of them: what is to be predicted
    brings: tuple[str, ...] = TO_BUILD  # of the clean project
    printed: bool = False  # whether all that its commands print is published


class Answer(NamedTuple):
    """What came of it."""

    command: str
    expected: str
    told: str  # the first lines of the message, or of what was printed
    wrong: list[str]  # what is not as it should be
    printed: list[str]  # all that the commands printed, where that is published


def build(*words: str, config: str = CONFIG) -> tuple[Command, ...]:
    """Return the command that builds a cache from a config, with words behind it."""
    return (("build_cache", "--config", config, *words),)


def from_file(file: str, *settings: str) -> tuple[Command, ...]:
    """Return the command that builds a cache from a file, with other keys set."""
    return build(*(word for each in (f"data.path={file}", *settings) for word in ("--set", each)))


CSV = from_file("table.csv")


def refused(*tells: str) -> Expected:
    """Return that a command is refused by one message which holds these words."""
    return Expected(REFUSED, tells)


def same_cache(*tells: str) -> Expected:
    """Return that the cache holds what that of the clean table does, number by number."""
    return Expected(SAME, tells, cache_differences)


def same_predictions(*tells: str, rows: int | None = None, nulls: Sequence[int] = ()) -> Expected:
    """Return that the first rows have the predictions of the clean ones, and some none."""
    return Expected(
        SAID if nulls else SAME,
        tells,
        lambda folder, finished: prediction_differences(folder, finished, rows, nulls),
    )


def said(*tells: str, differences: Differences = lambda folder, finished: []) -> Expected:
    """Return that a command ends well and prints these words."""
    return Expected(SAID, tells, differences)


def play(mistake: Mistake, scene: Scene) -> Outcome:
    """Make a mistake in a folder of its own; the outcome's reason is an `Answer` as JSON."""
    scene.bring(mistake.brings if mistake.frame is None else RUN)
    clean = scene.finished / ("table.parquet" if mistake.frame is None else "new.parquet")
    wrong: list[str] = []
    printed: list[str] = []
    if mistake.frame is None:
        in_fork(lambda: _brought(mistake, scene.folder, clean))
        for words in mistake.commands[:-1]:
            before = scene.call(*words)
            printed.append(before.out)
            wrong += [] if before.code == 0 else [f"{words[0]}: {before.code}: {before.err[-300:]}"]
        done = scene.call(*mistake.commands[-1])
        shown = "; ".join(f"python -m jobs.{' '.join(words)}" for words in mistake.commands)
    else:
        done = Done(*in_fork(lambda: _predicted(scene.folder, clean, mistake.frame)))
        shown = done.command
    printed = [*printed, done.out] if mistake.printed else []
    if mistake.printed:
        done = replace(done, out="\n".join(printed))
    wrong += judged(done, mistake.expected)
    if not wrong and mistake.expected.verdict != REFUSED:
        wrong += in_fork(lambda: mistake.expected.differences(scene.folder, scene.finished))
    told = _told(done, mistake.expected)
    answer = Answer(shown, mistake.expected.verdict, told, wrong, printed)
    # no folders of this machine
    text = json.dumps(answer._asdict()).replace(f"{scene.folder}", "PROJECT")
    return Outcome("wrong" if wrong else "harmless", text)


def _brought(mistake: Mistake, folder: Path, clean: Path) -> bool:
    """Write what a person has; return True, as a fork must return something."""
    mistake.bring(folder, pl.read_parquet(clean))
    return True


def _predicted(folder: Path, clean: Path, made: Callable[[pl.DataFrame], Any]) -> tuple[Any, ...]:
    """Return how the prediction of a frame ended, as a command; its result is out.parquet."""
    from fusionnet.trained.reward import RewardModel

    model = RewardModel.load(folder / "run")
    try:
        found = model.predict(made(pl.read_parquet(clean)))
    except UserError as error:
        return (*FRAME, 2, "", f"error: {error}")
    columns = {str(name): list(found[name]) for name in found.columns}
    pl.DataFrame(columns, strict=False).write_parquet(folder / "out.parquet")
    return (*FRAME, 0, f"{len(found)} rows of {type(found).__module__.split('.')[0]}", "")


def judged(done: Done, expected: Expected) -> list[str]:
    """Return what is not as it should be in how a command ended and in what it said."""
    lines = []
    if "Traceback (most recent call last)" in done.err:
        lines.append(f"traceback: {done.err.strip()[-300:]}")
    code = 2 if expected.verdict == REFUSED else 0
    if done.code != code:
        lines.append(f"exit code {done.code}, not {code}: {(done.err or done.out).strip()[-300:]}")
    messages = len(MESSAGE.findall(done.err))
    if expected.verdict == REFUSED and messages != 1:
        lines.append(f"{messages} messages, not 1")
    text = done.err if expected.verdict == REFUSED else done.out + done.err
    return lines + [f"not said: {word}" for word in expected.tells if word not in text]


def _told(done: Done, expected: Expected) -> str:
    """Return the lines that hold what is expected to be said, else the first ones."""
    text = done.err if done.code else done.out
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith(("strings/s]", "it/s]"))]
    wanted = [line for line in lines if any(word in line for word in expected.tells)]
    if expected.verdict == REFUSED:
        wanted = lines[1:] if len(lines) > 1 and "breaks its config" in lines[0] else lines
    told = " ".join((wanted or lines)[:3])
    return told if len(told) <= MOST_SHOWN else f"{told[:MOST_SHOWN]}..."


def cache_differences(folder: Path, finished: Path) -> list[str]:
    """Return where the rows, strings and groups of a folder's cache are not those of the clean
    table, read by zarr alone.
    """
    return arrays_that_differ(folder / "cache.zarr", finished / "cache.zarr")


def arrays_that_differ(found: Path, wanted: Path) -> list[str]:
    """Return which arrays of two caches differ in what they hold."""
    mine, theirs = (zarr.open_group(path, mode="r") for path in (found, wanted))
    names = [f"rows/{name}" for name, _ in theirs["rows"].arrays()]
    names += ["strings/polymer/text", "groups/name"]
    lines = []
    for name in names:
        both = mine[name][:], theirs[name][:]
        are_floats = both[0].dtype.kind == "f"
        if not np.array_equal(*both, equal_nan=are_floats):
            lines.append(f"{name} is not that of the clean table")
    return lines


def prediction_differences(
    folder: Path, finished: Path, rows: int | None, nulls: Sequence[int]
) -> list[str]:
    """Return where predictions are not those of the clean rows, or are there but should not be."""
    mine = pl.read_parquet(folder / "out.parquet")
    theirs = pl.read_parquet(finished / "out.parquet")[:rows]
    if len(mine) != len(theirs):
        return [f"{len(mine)} predictions of {len(theirs)} rows"]
    lines = []
    for name in (name for name in theirs.columns if name.startswith("predicted_")):
        for row, (one, other) in enumerate(zip(mine[name], theirs[name], strict=True)):
            is_none = one is None or math.isnan(one)
            if is_none != (row in nulls) or (not is_none and abs(one - other) > 1e-5):
                lines.append(f"{name}, row {row}: {one}, not {None if row in nulls else other}")
    if nulls and any(mine["reason"][row] is None for row in nulls):
        lines.append("a row without a prediction has no reason")
    return lines[:5]
