"""Whether two results are the same, told in words: caches, runs, metrics, predictions, files.

Nothing of the packages' own checks is used: what they overlook must be found here.
"""

import hashlib
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# what differs between two equal runs
VOLATILE = re.compile(r"second|rows_per_s|peak_rss|run_id|_time|since|started")
OF_EVALUATION = (
    "metrics.json",
    "report.html",
    "plots",
    ".evaluation.lock",
)  # what training does not make
EVENTS = re.compile(r"events\.out\.tfevents\.\S+")


def files_below(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder by its name; of a link where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changed_files(folder: Path, before: dict[str, str]) -> list[str]:
    """Return which of the files that were there before are gone or changed."""
    now = files_below(folder)
    gone = [f"{name} is gone" for name in before if name not in now]
    return gone + [
        f"{name} changed" for name in before if now.get(name, before[name]) != before[name]
    ]


def names_below(folder: Path) -> set[str]:
    """Return the names of all files and folders below, event files under one name."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {EVENTS.sub("events", name) for name in names}


def cache_differences(found: Path, wanted: Path) -> list[str]:
    """Return where the content of a cache differs: all its files but the root, whose attributes
    say when and by whom, and of the root those that say what.
    """
    mine, theirs = files_below(found), files_below(wanted)
    lines = [
        f"{name} differs"
        for name in theirs
        if name != "zarr.json" and mine.get(name) != theirs[name]
    ]
    roots = [written(folder / "zarr.json") for folder in (found, wanted)]
    if not isinstance(roots[0], dict):
        return [*lines, str(roots[0])]
    mine, theirs = (root["attributes"] for root in roots)
    same = ("identity", "layout", "files", "format_version")
    return lines + [f"root: {key}" for key in same if mine.get(key) != theirs.get(key)]


def run_differences(found: Path, wanted: Path, name: str = "small") -> list[str]:
    """Return where a trained run differs from another: weights and state of every checkpoint
    bitwise, log, TensorBoard, exports, and the names of its files.
    """
    lines = []
    mine, theirs = (_of_training(names_below(folder)) for folder in (found, wanted))
    if theirs - mine:
        return [f"{name} is missing" for name in sorted(theirs - mine)]
    lines += [f"stray {name}" for name in sorted(mine - theirs)]
    for moment in ("best", "final", "last"):
        contents = (checkpoint(folder / f"{name}_{moment}.pt") for folder in (found, wanted))
        lines += [f"{moment}: {line}" for line in differences(*contents)]
    lines += log_differences(found, wanted)
    weights = (load_file(folder / "network.safetensors") for folder in (found, wanted))
    lines += [f"network.safetensors: {line}" for line in differences(*weights)]
    return lines


def _of_training(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith(OF_EVALUATION)}


def log_differences(found: Path, wanted: Path) -> list[str]:
    """Return where the logs of two runs differ: training_log.json and TensorBoard's scalars."""
    records = [written(folder / "training_log.json") for folder in (found, wanted)]
    lines = [f"training_log.json: {line}" for line in differences(*records)]
    shown = [scalars(folder / "tensorboard") for folder in (found, wanted)]
    return lines + [f"tensorboard: {line}" for line in differences(*shown)]


def written(file: Path) -> Any:
    """Return what a JSON file holds, or why it cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        return f"{file.name} cannot be read: {error}"


def checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run: steps and values of each curve; none where it
    cannot read them.
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that a run was resumed is known
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except OSError:
        return {}
    tags = events.Tags()["scalars"]
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in tags}


def metrics_differences(found: Path, wanted: Path) -> list[str]:
    """Return where two metrics.json differ, or that one holds what is no number."""
    return differences(written(found), written(wanted))


def prediction_differences(found: Path, wanted: Path, tolerance: float = 1e-6) -> list[str]:
    """Return where two files of predictions differ; every prediction must be finite."""
    if not found.is_file():
        return [f"there is no {found.name}"]
    mine, theirs = pl.read_parquet(found), pl.read_parquet(wanted)
    if mine.shape != theirs.shape or mine.columns != theirs.columns:
        return [f"{mine.shape} instead of {theirs.shape}"]
    lines = []
    for column in theirs.columns:
        if theirs[column].dtype.is_float():
            far = (mine[column] - theirs[column]).abs().fill_nan(math.inf).max()
            if not isinstance(far, float) or far > tolerance:
                lines.append(f"{column} is off by {far}")
        elif not mine[column].equals(theirs[column]):
            lines.append(f"{column} differs")
    return lines


def not_finite(value: Any, path: str = "") -> list[str]:
    """Return where a nested value holds NaN or infinity."""
    if isinstance(value, dict):
        return [line for key, each in value.items() for line in not_finite(each, f"{path}.{key}")]
    if isinstance(value, list | tuple):
        return [
            line for key, each in enumerate(value) for line in not_finite(each, f"{path}.{key}")
        ]
    if isinstance(value, torch.Tensor):
        return [] if bool(value.isfinite().all()) else [f"{path} is not finite"]
    return [f"{path} is {value}"] if isinstance(value, float) and not math.isfinite(value) else []


def differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """Return where two nested values differ, but for what differs between two equal runs."""
    if VOLATILE.search(path.rpartition(".")[2]):
        return []
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = [*theirs, *(key for key in mine if key not in theirs)]
        return [
            line
            for key in keys
            for line in differences(mine.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        if len(mine) != len(theirs):
            return [f"{path}: {len(mine)} items instead of {len(theirs)}"]
        both = enumerate(zip(mine, theirs, strict=True))
        return [line for key, pair in both for line in differences(*pair, f"{path}.{key}")]
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        return [] if same else [f"{path}: tensors differ"]
    return [] if mine == theirs else [f"{path}: {mine!r:.80} instead of {theirs!r:.80}"]
