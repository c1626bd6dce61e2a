"""The folder of a cross-validation: one run folder per fold, and what is known of finished folds.

`cross_validation.json` says by which config it was begun, and has the metrics of each fold whose
predictions are written. It is written anew, atomically, after each fold, so a kill at any moment
leaves what was finished. The folder is locked by who cross-validates in it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.cache.reader import Cache
from embedcache.errors import RunError
from embedcache.files import write_atomically
from fusionnet.evaluation.crossvalidation import FoldResult, fold_to_json
from fusionnet.experiment import Experiment
from fusionnet.runfolder.claim import ELSEWHERE
from fusionnet.runfolder.listing import (
    EVALUATION_LOCK,
    HOLDER,
    LIST,
    LOCK,
    delete_files,
    foreign_files,
    read_listing,
    some_of,
)

STATE, PREDICTIONS, METRICS = "cross_validation.json", "out_of_fold.parquet", "metrics.json"
_OWN = {STATE, PREDICTIONS, METRICS, LOCK, HOLDER}
# where things lie, and which rotation a config happens to name
_FREE = ("run.dir", "run.note", "cache.path", "split.rotation")


@dataclass
class FoldsFolder:
    """A cross-validation's folder, its lock held."""

    path: Path
    config: dict[str, str]  # flat
    done: dict[int, FoldResult]

    def fold(self, rotation: int) -> Path:
        """Return the run folder of a fold."""
        return self.path / f"fold_{rotation}"

    def finish(self, result: FoldResult) -> None:
        """Note that a fold is done; its predictions must have been written."""
        self.done[result.rotation] = result
        self._write()

    def _write(self) -> None:
        folds = [fold_to_json(self.done[rotation]) for rotation in sorted(self.done)]
        text = json.dumps({"config": self.config, "folds": folds}, indent=1, allow_nan=False)
        write_atomically(self.path / STATE, f"{text}\n".encode())


def open_folder(experiment: Experiment, cache: Cache, resume: bool, overwrite: bool) -> FoldsFolder:
    """Return the folder of a cross-validation, new or to be gone on with; its lock must be held.

    Raises RunError where it holds something else, or an earlier cross-validation that nothing says
    what is to become of, or that is of another config.
    """
    path, config = Path(experiment.run.dir), flat_config(experiment, cache)
    state = path / STATE
    if not state.is_file():
        _check_empty(path)
    elif resume:
        return FoldsFolder(path, config, _finished(state, config))
    elif overwrite:
        _delete(path)
    else:
        raise RunError(
            f"{path} holds an earlier cross-validation; go on with it by --resume, delete it by"
            f" --overwrite, or {ELSEWHERE}"
        )
    folder = FoldsFolder(path, config, {})
    folder._write()
    return folder


def flat_config(experiment: Experiment, cache: Cache) -> dict[str, str]:
    """Return what a cross-validation depends on, as flat entries: the config, the files' bytes."""
    entries = _flat("", experiment.model_dump(mode="json"))
    config = {name: value for name, value in entries.items() if name not in _FREE}
    of_files = dict(cache.identity.entries)
    return {**{name: text for name, text in of_files.items() if name not in entries}, **config}


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    return {
        name: text
        for key, inner in value.items()
        for name, text in _flat(f"{prefix}.{key}" if prefix else str(key), inner).items()
    }


def _finished(state: Path, config: dict[str, str]) -> dict[int, FoldResult]:
    """Return the finished folds of a cross-validation of this config."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        before = dict(content["config"])
        folds = [FoldResult(**fold) for fold in content["folds"]]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{state} is damaged; restore it, or begin anew with --overwrite") from None
    different = [
        f"  - {name}: {before.get(name, '(none)')} -> {config.get(name, '(none)')}"
        for name in sorted({*before, *config})
        if before.get(name) != config.get(name)
    ]
    if different:
        listed = "\n".join(different)
        raise RunError(
            f"{state.parent} holds a cross-validation of another config (that one -> this"
            f" one):\n{listed}\ngo on with that config, begin anew with --overwrite, or {ELSEWHERE}"
        )
    return {fold.rotation: fold for fold in folds}


def _check_empty(path: Path) -> None:
    """Raise RunError where a folder holds anything that is not ours."""
    found = [entry.name for entry in path.iterdir() if entry.name not in _OWN]
    if found:
        raise RunError(
            f"{path} holds no cross-validation, but {some_of(sorted(found))}; it has a folder of"
            f" its own, so nothing was touched: {ELSEWHERE}"
        )


def _delete(path: Path) -> None:
    """Delete a cross-validation's own files; raise RunError first where there are others."""
    folds = [entry for entry in path.iterdir() if entry.name not in _OWN]
    for entry in folds:
        is_run = entry.name.startswith("fold_") and entry.is_dir() and not entry.is_symlink()
        foreign = foreign_files(entry) if is_run else [entry.name]
        if foreign:
            where = entry if is_run else path
            raise RunError(
                f"{where} holds {some_of(foreign)}, which no cross-validation wrote, so --overwrite"
                f" leaves it alone and nothing was touched; move that elsewhere, or {ELSEWHERE}"
            )
    for entry in folds:
        listing = read_listing(entry)
        own = frozenset({LIST, LOCK, HOLDER, EVALUATION_LOCK})
        delete_files(entry, own if listing is None else own | listing.files | listing.replaced)
        entry.rmdir()
    for name in (METRICS, PREDICTIONS, STATE):
        (path / name).unlink(missing_ok=True)
