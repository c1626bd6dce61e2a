"""Training: epochs of optimizer steps, validation, checkpoints, the log.

The run folder is written by rank 0 alone. After each epoch `<name>_last.pt` holds everything that continuing needs; `<name>_best.pt` (lowest validation
loss) and `<name>_final.pt` are links to it. Killed at any moment, a run resumed from it ends with bitwise the same weights on a CPU.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from embedcache.errors import RunError
from embedcache.sources import VectorSource
from embedcache.store import Cache
from fusionnet.assemble import Recipe, build_model, make_sources
from fusionnet.batches import RowTable, StepPlan, load_rows
from fusionnet.config import OptimConfig
from fusionnet.metrics import task_metrics
from fusionnet.model.joint import JointModel
from fusionnet.predict import forward_rows, to_units
from fusionnet.train.checkpoint import link_checkpoint, load_checkpoint, save_checkpoint
from fusionnet.train.engine import Engine, World
from fusionnet.train.runlog import Record, RunLog, peak_rss_bytes
from fusionnet.train.schedule import Schedule, make_schedule
from fusionnet.train.step import optimizer_step

CPU_MICRO_BATCH_ROWS = 1024  # activations of one layer stay near the caches; measured in benchmarks/results
GPU_MICRO_BATCH_ROWS = 8192
# What a resumed run may change: where things lie, who computes, and what is done with the result.
MAY_CHANGE = (
    "run.",
    "reward.",
    "cache.",
    "data.path",
    "encoder.source",
    "encoder.memory_budget_gib",
    "train.cpu_threads",
    "train.eval_batch_rows",
    "train.micro_batch_rows",
)


@dataclass
class Trainer:
    """All that one run holds while it trains."""

    recipe: Recipe
    optim: OptimConfig
    cache: Cache
    world: World
    model: JointModel
    engine: Engine
    sources: list[VectorSource]
    plan: StepPlan
    schedule: Schedule
    train_rows: RowTable
    validation_rows: RowTable


def make_trainer(recipe: Recipe, optim: OptimConfig, cache: Cache, world: World, pad_to: int | None = None) -> Trainer:
    """Return a trainer at step 0."""
    train = recipe.train
    set_threads(train.cpu_threads, world)
    num_micro_batches = micro_batches_per_rank(train.batch_rows, train.micro_batch_rows, world)
    model = build_model(recipe, cache.layout, cache.scaling, world.device)
    engine = Engine(model, model.parameter_groups(optim), world, train, optim, num_micro_batches)
    train_rows = load_rows(cache, "train", world.device)
    plan = StepPlan(train_rows.num_rows, train.batch_rows, num_micro_batches, world.size, train.seed)
    return Trainer(
        recipe=recipe,
        optim=optim,
        cache=cache,
        world=world,
        model=model,
        engine=engine,
        sources=make_sources(model, recipe, cache, world.device, pad_to),
        plan=plan,
        schedule=make_schedule(optim, plan.steps_per_epoch, train.epochs),
        train_rows=train_rows,
        validation_rows=load_rows(cache, "validation", world.device),
    )


def train_run(trainer: Trainer, folder: Path, name: str, config: dict[str, Any], resume: bool, shareable: dict[str, Any]) -> list[Record]:
    """Train to the last epoch and return the log's records; `config` and `shareable` travel in every checkpoint."""
    last = folder / f"{name}_last.pt"
    done, records, best = (0, [], float("inf"))
    if resume and last.is_file():
        done, records, best = _resume(trainer, load_checkpoint(last), config, last)
    log = RunLog(folder, trainer.recipe.tasks, records) if trainer.world.is_main else None
    if log is not None:
        print(log.header())
        for record in records:
            print(log.line(record))
    for epoch in range(done, trainer.recipe.train.epochs):
        record = run_epoch(trainer, epoch)
        improved = record["val_loss"] < best
        best = min(best, record["val_loss"])
        state = _checkpoint_content(trainer, epoch, record, [*records, record], best, config)
        if log is not None:
            save_checkpoint(last, {**state, **shareable, "vectors": _vectors(trainer)})
            if improved:
                link_checkpoint(last, folder / f"{name}_best.pt")
            log.append(record)
            print(log.line(record), flush=True)
        records.append(record)
        trainer.world.barrier()
    if log is not None:
        link_checkpoint(last, folder / f"{name}_final.pt")
        log.close()
    trainer.world.barrier()
    return records


def run_epoch(trainer: Trainer, epoch: int) -> Record:
    """Train one epoch (numbered from 0), validate, and return its record."""
    started = time.perf_counter()
    trainer.model.train()
    plan, world = trainer.plan, trainer.world
    totals = torch.zeros(1 + len(trainer.recipe.tasks), device=world.device)
    silent = None if world.is_main else True
    with tqdm(total=plan.num_rows, unit="rows", unit_scale=True, desc=f"epoch {epoch + 1}", leave=False, disable=silent) as bar:
        for number, positions in enumerate(plan.steps(epoch)):
            step = epoch * plan.steps_per_epoch + number
            trainer.engine.set_learning_rates(trainer.schedule.rates(step))
            rows = trainer.train_rows.take(positions.to(world.device))
            local = torch.arange(len(positions), device=world.device)
            totals += optimizer_step(trainer.engine, trainer.sources, rows, plan.micro_batches(local, world.rank), plan.seed, step)
            bar.update(len(positions))
    train_losses = world.sum(totals) / plan.steps_per_epoch
    trained = time.perf_counter() - started
    val_loss, metrics = validate(trainer)
    tasks = trainer.recipe.tasks
    return {
        "epoch": epoch + 1,
        "train_loss": float(train_losses[0]),
        "val_loss": val_loss,
        **{f"{task.name}_{metric}": value for task in tasks for metric, value in metrics[task.column].items()},
        **{f"train_loss_{task.name}": float(loss) for task, loss in zip(tasks, train_losses[1:], strict=True)},
        **{f"sigma_{task.name}": float(sigma) for task, sigma in zip(tasks, (0.5 * trainer.model.loss.log_variance.detach()).exp(), strict=True)},
        "gradient_norm": trainer.engine.gradient_norm,
        "learning_rates": trainer.schedule.rates((epoch + 1) * plan.steps_per_epoch - 1),
        "seconds": time.perf_counter() - started,
        "rows_per_s": plan.num_rows / trained,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def validate(trainer: Trainer) -> tuple[float, dict[str, dict[str, float | None]]]:
    """Return the validation loss and each task's metrics, on every rank; ranks share the rows."""
    rows, world, recipe = trainer.validation_rows, trainer.world, trainer.recipe
    parts = torch.arange(rows.num_rows, device=world.device).tensor_split(world.size)
    tables = string_tables(trainer)
    own = forward_rows(trainer.model, tables, rows.take(parts[world.rank]), recipe.train.eval_batch_rows, progress=world.is_main)
    outputs = world.gather_rows(own, [len(part) for part in parts])
    result: tuple[float, dict[str, dict[str, float | None]]] | None = None
    if world.is_main:
        with torch.no_grad():
            loss = trainer.model.loss(outputs, rows.targets, rows.weight, rows.loss_denominators(), 1.0).total
        predictions = to_units(outputs, recipe.tasks, trainer.cache.scaling)
        result = float(loss), task_metrics(recipe.tasks, rows.targets.cpu().numpy(), predictions.cpu().numpy())
    return world.broadcast(result)


def string_tables(trainer: Trainer) -> list[Float[Tensor, "_ _"]]:
    """Return the present vectors of all strings, one table per string column."""
    with trainer.model.autocast():
        return [source.table() for source in trainer.sources]


def micro_batches_per_rank(batch_rows: int, micro_batch_rows: int | None, world: World) -> int:
    """Return how many micro-batches each rank reads per optimizer step."""
    default = CPU_MICRO_BATCH_ROWS if world.device.type == "cpu" else GPU_MICRO_BATCH_ROWS
    return max(1, -(-batch_rows // (world.size * (micro_batch_rows or default))))


def set_threads(asked: int | None, world: World) -> None:
    """Share this machine's cores among its ranks; torchrun would leave one thread each, which is far too few for few ranks."""
    if world.device.type == "cpu":
        torch.set_num_threads(asked or max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // world.local_size))


def _vectors(trainer: Trainer) -> dict[str, Tensor]:
    names = [spec.name for spec in trainer.cache.layout.strings]
    return {name: table.float().cpu() for name, table in zip(names, string_tables(trainer), strict=True)}


def _checkpoint_content(trainer: Trainer, epoch: int, record: Record, records: list[Record], best: float, config: dict[str, Any]) -> dict[str, Any]:
    """Return what continuing needs, under the specification's names (collective: the optimizer's state is gathered)."""
    engine_state = trainer.engine.state()
    return {
        "epoch": epoch + 1,
        "model_state_dict": engine_state.pop("parameters"),
        "optimizer_state_dict": engine_state,
        "scheduler_state_dict": {"step": (epoch + 1) * trainer.plan.steps_per_epoch},
        "loss_module_state_dict": {key: value.cpu() for key, value in trainer.model.loss.state_dict().items()},
        "best_val_loss": best,
        "metrics": record,
        "records": records,
        "config": config,
    }


def _resume(trainer: Trainer, checkpoint: dict[str, Any], config: dict[str, Any], path: Path) -> tuple[int, list[Record], float]:
    """Load a checkpoint into the trainer and return (epochs done, their records, best validation loss); refuse another config's."""
    changed = [line for line in _differences(checkpoint["config"], config) if not line.startswith(MAY_CHANGE)]
    if changed:
        raise RunError(f"{path} was trained with another config, so it cannot be resumed:\n" + "\n".join(f"  - {line}" for line in changed))
    trainer.engine.load_state({"parameters": checkpoint["model_state_dict"], **checkpoint["optimizer_state_dict"]})
    return checkpoint["epoch"], checkpoint["records"], checkpoint["best_val_loss"]


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one line per value that differs between two nested configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
