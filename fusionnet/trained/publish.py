"""A run's best epoch in a folder of its own, without pickles: see `portable` for its format.

The folder is read by whatever reads a run folder (`load_run`, `predict`, `evaluate`, the hub): it
has a list of files and the run's YAML file, whose reward, goals, note and encoder path may be
edited here as there. The frozen base encoder is not in it; only strings that the run has never seen
need one.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedcache.errors import OutputError, RunError
from embedcache.files import atomic_write, write_atomically
from fusionnet.blend.saved import blend_path
from fusionnet.calibration.saved import calibration_path
from fusionnet.recipe import model_of
from fusionnet.runfolder.listing import begin_listing, list_files, read_listing
from fusionnet.train.proof.record import proof_path
from fusionnet.train.runlog import LOG
from fusionnet.trained.card import model_card
from fusionnet.trained.folder import SETTINGS, is_portable
from fusionnet.trained.measured import METRICS
from fusionnet.trained.portable import Portable
from fusionnet.trained.run import TrainedRun

_FOLDERS = ("adapter", "tokenizer")  # with several encoders also adapter_<string column>


def write_portable(run: TrainedRun, target: Path) -> None:
    """Write a new folder; raises OutputError where there is one already."""
    check_new(target)
    with atomic_write(target) as partial:
        partial.mkdir()
        fill_portable(run, partial, target.name)


def check_new(target: Path) -> None:
    """Raise OutputError unless nothing, or an empty folder, is there."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} is there already; export into a new folder")


def fill_portable(run: TrainedRun, folder: Path, called: str) -> None:
    """Write into an empty folder, which its card speaks of by a name.

    Raises RunError for another epoch than the best.
    """
    if run.moment != "best":
        raise RunError(
            f"what is exported of {run.folder} is its best epoch, which trees and calibration"
            f" belong to; its {run.moment} one was loaded"
        )
    files = {
        **dict(_beside(run)),
        **_portable(run).files(),
        "README.md": model_card(run, called).encode(),
    }
    begin_listing(folder, run.name, run.run_id)
    list_files(folder, run.run_id, files)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomically(folder / name, content)


def _portable(run: TrainedRun) -> Portable:
    """Return the run's model, as far as predicting needs it."""
    settings = {
        "library_name": "fusionnet",
        "run_id": run.run_id,
        "epoch": run.epoch,
        "step": 0,
        "has_ended": _has_ended(run),
        "saving": run.saving,
        "identity": run.identity,
        "config": run.config,
        "layout": run.layout.model_dump(mode="json"),
        "scaling": json.loads(run.scaling.to_json()),
        "records": [_without_infinite(record) for record in run.records],
    }
    return Portable(
        settings=settings,
        strings={column: list(rows) for column, rows in run.strings.items()},
        weights={**run.encoder_state, **_trained_weights(run)},
        vectors=run.vectors,
    )


def _has_ended(run: TrainedRun) -> bool:
    """Return whether the run's training has ended, so that what belongs to it must be beside it."""
    if is_portable(run.folder):
        return bool(json.loads((run.folder / SETTINGS).read_bytes())["has_ended"])
    has_final = (run.folder / f"{run.name}_final.pt").is_file()
    return has_final or run.calibration is not None or run.blend is not None


def _trained_weights(run: TrainedRun) -> dict[str, Tensor]:
    """Return the weights that a checkpoint has; a loaded run has frozen all alike."""
    with torch.device("meta"):
        fresh = model_of(run.recipe, run.layout, run.scaling, {})
    own = dict(run.model.named_parameters())
    return {name: own[name] for name, each in fresh.named_parameters() if each.requires_grad}


def _without_infinite(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record in which a number that JSON does not have is null, such as a norm in fp16."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _beside(run: TrainedRun) -> Iterator[tuple[str, bytes]]:
    """Yield what lies beside the best checkpoint and is read with it, by name in the folder."""
    own = [each(run.folder, run.name) for each in (blend_path, calibration_path, proof_path)]
    config = run.folder / f"{run.name}_config.yaml"
    for path in (config, *own, run.folder / LOG, run.folder / METRICS):
        if path.is_file():
            yield path.name, path.read_bytes()
    listing = read_listing(run.folder)
    assert listing is not None, "it was loaded from there"
    for name in sorted(listing.files):
        folder = name.partition("/")[0].partition("_")[0]
        if "/" in name and folder in _FOLDERS and (run.folder / name).is_file():
            yield name, (run.folder / name).read_bytes()
