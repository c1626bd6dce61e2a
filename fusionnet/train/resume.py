"""Where a run stands, kept in its checkpoints, and how it goes on from there.

`<name>_last.pt` is written after every epoch, with the optimizer's state, which best and final
checkpoints have not; with `train.checkpoint_steps` also `<name>_step.pt` inside an epoch, so that a
long epoch is not lost. The two hold the same things; the one that is further on wins. A run may go
on for more epochs than it was begun for, or for fewer: its learning rates are from then on those of
a run that was to have so many from the start, so they go up again where they had come down. All
randomness of a step is a function of (seed, step, rank) and the rows of a step one of (seed, epoch,
step), so counting is enough: a run killed at any moment ends with the same weights, bitwise on a
CPU.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.cache.identity import Identity
from embedcache.errors import RunError, StaleCacheError
from fusionnet.runfolder.listing import read_listing
from fusionnet.train.callbacks import Record
from fusionnet.train.checkpoint import check_run_id
from fusionnet.train.content import check_moments, check_weights, read_content
from fusionnet.train.protocols import StepEngine
from fusionnet.train.runfiles import MOMENTS, RunFiles
from fusionnet.train.world import World

# What a resumed run may change: where things lie, who computes, and what is done with the result.
MAY_CHANGE = (
    "run.",
    "reward.",
    "blend.",
    "calibration.",
    "cache.",
    "data.path",
    "encoder.source",
    "train.cpu_threads",
    "train.eval_batch_rows",
    "train.micro_batch_rows",
    "train.zero_stage",
    "encoder.memory_budget_gib",
    "train.offload",
    "train.cuda_graph",
    "train.deepspeed_config",
    "train.checkpoint_steps",
    "train.prove",
    "train.baselines",
    "train.trackers",
    "train.epochs",
    "train.early_stopping",
)


@dataclass
class Position:
    """What a run has behind it.

    Whole epochs with their records, and the present epoch's steps with their summed losses (one
    line per rank, W ranks), seconds, and the last step's gradient norm. Where these are all of the
    epoch's steps, its validation is what is left of it.
    """

    epoch: int = 0
    step: int = 0
    records: list[Record] = field(default_factory=list)
    best: float = float("inf")
    totals: Float[Tensor, "W losses"] | None = None
    seconds: float = 0.0
    gradient_norm: float = 0.0


def own_totals(position: Position, world: World, num_losses: int) -> Float[Tensor, " losses"]:
    """Return this rank's summed losses of the present epoch.

    Where the number of ranks has changed, rank 0 takes over all of them.
    """
    if position.totals is None:
        return torch.zeros(num_losses, device=world.device)
    if len(position.totals) == world.size:
        return position.totals[world.rank].to(world.device)
    whole = position.totals.sum(0).to(world.device)
    return whole if world.is_main else torch.zeros_like(whole)


def checkpoint_content(
    engine: StepEngine, position: Position, steps_per_epoch: int, order: str, config: dict[str, Any]
) -> dict[str, Any]:
    """Return what continuing needs, under the specification's names, in tensors of its own.

    Collective: the optimizer's state is gathered.
    """
    state = engine.state()
    loss = engine.model.get_submodule("loss").state_dict()
    return {
        "epoch": position.epoch,
        "step": position.step,
        "model_state_dict": state.pop("parameters"),
        "optimizer_state_dict": state,
        "scheduler_state_dict": {"step": position.epoch * steps_per_epoch + position.step},
        "loss_module_state_dict": {key: value.cpu().clone() for key, value in loss.items()},
        "best_val_loss": position.best,
        "metrics": position.records[-1] if position.records else {},
        "records": position.records,
        "epoch_losses": None if position.totals is None else position.totals.clone(),
        "epoch_seconds": position.seconds,
        "gradient_norm": position.gradient_norm,
        "order": order,
        "config": config,
    }


def resumed(engine: StepEngine, files: RunFiles, order: str) -> tuple[str, Position] | None:
    """Load the run's furthest checkpoint into the engine; return the run's id and where it stands.

    None where no run has come to a checkpoint. Raises RunError for a checkpoint of another run or
    config, StaleCacheError for one of another cache.
    """
    listing = read_listing(files.folder)
    if listing is None or listing.replaced:
        return None
    present = [moment for moment in MOMENTS if files.checkpoint(moment).is_file()]
    furthest = _furthest(files, listing.run_id)
    if furthest is None:
        if present:
            raise RunError(
                f"{files.checkpoint('last')} is gone, so the run cannot be resumed:"
                f" {files.name}_{present[0]}.pt predicts, but has no state of the optimizer. Put"
                " the file back, or train anew with --overwrite"
            )
        return None
    path, checkpoint = furthest
    _check_resumable(path, checkpoint, files, order)
    check_weights(engine.model, checkpoint["model_state_dict"], path)
    check_moments(engine.model, checkpoint["optimizer_state_dict"], path)
    engine.load_state(
        {"parameters": checkpoint["model_state_dict"], **checkpoint["optimizer_state_dict"]}
    )
    return listing.run_id, Position(
        epoch=checkpoint["epoch"],
        step=checkpoint["step"],
        records=checkpoint["records"],
        best=checkpoint["best_val_loss"],
        totals=checkpoint["epoch_losses"],
        seconds=checkpoint["epoch_seconds"],
        gradient_norm=checkpoint["gradient_norm"],
    )


def _furthest(files: RunFiles, run_id: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint of this run that has most steps behind it."""
    paths = [files.checkpoint(moment) for moment in ("last", "step")]
    found = {path: read_content(path) for path in paths if path.is_file()}
    for path, checkpoint in found.items():
        check_run_id(path, checkpoint, run_id)
    return max(found.items(), key=lambda item: (item[1]["epoch"], item[1]["step"]), default=None)


def _check_resumable(path: Path, checkpoint: dict[str, Any], files: RunFiles, order: str) -> None:
    """Raise RunError for a checkpoint of another config, StaleCacheError for one of another cache.

    Where cache, table and encoder lie may have changed, what they hold may not.
    """
    changed = [
        line
        for line in differences(checkpoint["config"], files.config)
        if not line.startswith(MAY_CHANGE)
    ]
    if checkpoint["step"] > 0 and checkpoint["order"] != order:
        changed.append(
            f"order of rows: {checkpoint['order']} -> {order} (it may change between epochs only)"
        )
    if changed:
        raise RunError(
            f"{path} was trained with another config, so it cannot be resumed:\n"
            + "\n".join(f"  - {line}" for line in changed)
        )
    epochs, begun = files.config["train"]["epochs"], checkpoint["epoch"] + (checkpoint["step"] > 0)
    if epochs < begun:
        raise RunError(
            f"{path} has begun its epoch {begun}, train.epochs is {epochs}; give {begun} or more"
        )
    identity = Identity(files.shareable["identity"])
    different = Identity(checkpoint["identity"]).difference(identity)
    if different:
        raise StaleCacheError(
            f"{path} was trained on another cache than the one at {files.config['cache']['path']},"
            " so it cannot be resumed (checkpoint -> cache):\n"
            + "\n".join(f"  - {line}" for line in different)
            + "\nput back the table and the encoder that it was trained on and build their cache,"
            " or train anew in another run.dir"
        )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one line per value that differs between two nested configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
