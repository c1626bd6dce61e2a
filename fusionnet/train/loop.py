"""Training: epochs of optimizer steps, validation, checkpoints, the log.

The run folder is written by rank 0 alone. After each epoch `<name>_last.pt` holds everything that
continuing needs; `<name>_best.pt` (lowest validation loss) and `<name>_final.pt` are links to it.
How a run goes on from a checkpoint, also from one inside an epoch, is told in `resume`.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from embedcache.cache.reader import Cache
from embedcache.live.sources import VectorSource
from fusionnet.assemble import Recipe, build_model, make_sources
from fusionnet.config import OptimConfig
from fusionnet.metrics import task_metrics
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import RowSource
from fusionnet.rows.streaming import open_rows
from fusionnet.train.checkpoint import link_checkpoint, save_checkpoint
from fusionnet.train.engine import Engine, World
from fusionnet.train.resume import Position, checkpoint_content, own_totals, resumed
from fusionnet.train.runlog import Record, RunLog, peak_rss_bytes
from fusionnet.train.schedule import Schedule, make_schedule
from fusionnet.train.sizing import (
    is_compiled,
    micro_batches_per_rank,
    set_threads,
    settled_precision,
)
from fusionnet.train.step import optimizer_step


@dataclass
class Trainer:
    """All that one run holds while it trains."""

    recipe: Recipe
    optim: OptimConfig
    cache: Cache
    world: World
    model: TrainableModel
    engine: Engine
    sources: list[VectorSource]
    plan: StepPlan
    schedule: Schedule
    train_rows: RowSource
    validation_rows: RowSource


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes, and what every checkpoint of it carries for those who read it
    elsewhere.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    shareable: dict[str, Any]

    def checkpoint(self, moment: str) -> Path:
        """Return the checkpoint file of a moment: last, step, best or final."""
        return self.folder / f"{self.name}_{moment}.pt"


def make_trainer(
    recipe: Recipe, optim: OptimConfig, cache: Cache, world: World, pad_to: int | None = None
) -> Trainer:
    """Return a trainer at step 0; its recipe says what `train.precision: auto` came to."""
    train = recipe.train.model_copy(
        update={"precision": settled_precision(recipe.train.precision, world)}
    )
    recipe = replace(recipe, train=train)
    set_threads(train.cpu_threads, world)
    train_rows, validation_rows = open_rows(cache, train, world.device)
    model = build_model(recipe, cache.layout, cache.scaling, world.device)
    num_micro_batches = micro_batches_per_rank(
        train, recipe.model, recipe.tasks, cache.layout, world
    )
    if is_compiled(train, world.device):
        model.network.compile(fullgraph=True, dynamic=True)
    engine = Engine(model, model.parameter_groups(optim), world, train, optim, num_micro_batches)
    plan = StepPlan(
        train_rows.num_rows, train.batch_rows, num_micro_batches, world.size, train.seed
    )
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
        validation_rows=validation_rows,
    )


def train_run(trainer: Trainer, files: RunFiles, resume: bool) -> list[Record]:
    """Train to the last epoch and return the log's records."""
    order = trainer.train_rows.order
    position = (
        resumed(trainer.engine, files.folder, files.name, files.config, order)
        if resume
        else Position()
    )
    log = (
        RunLog(files.folder, trainer.recipe.tasks, position.records)
        if trainer.world.is_main
        else None
    )
    if log is not None:
        print("\n".join([log.header(), *(log.line(record) for record in position.records)]))
    while position.epoch < trainer.recipe.train.epochs:
        record = run_epoch(trainer, position, files)
        improved = record["val_loss"] < position.best
        position = Position(
            position.epoch + 1,
            0,
            [*position.records, record],
            min(position.best, record["val_loss"]),
        )
        _save(trainer, position, files, "last")
        if log is not None:
            if improved:
                link_checkpoint(files.checkpoint("last"), files.checkpoint("best"))
            files.checkpoint("step").unlink(missing_ok=True)
            log.append(record)
            print(log.line(record), flush=True)
        trainer.world.barrier()
    if log is not None:
        link_checkpoint(files.checkpoint("last"), files.checkpoint("final"))
        log.close()
    trainer.world.barrier()
    return position.records


def run_epoch(trainer: Trainer, position: Position, files: RunFiles) -> Record:
    """Train the rest of the position's epoch, validate, and return its record."""
    epoch, tasks, plan, world = position.epoch, trainer.recipe.tasks, trainer.plan, trainer.world
    started = time.perf_counter() - position.seconds
    trainer.model.train()
    totals = own_totals(position, world, 1 + len(tasks))
    done, every = sum(plan.step_sizes[: position.step]), trainer.recipe.train.checkpoint_steps
    silent = None if world.is_main else True
    with tqdm(
        total=plan.num_rows,
        initial=done,
        unit="rows",
        unit_scale=True,
        desc=f"epoch {epoch + 1}",
        leave=False,
        disable=silent,
    ) as bar:
        for number, rows in enumerate(
            trainer.train_rows.steps(plan, epoch, position.step), position.step
        ):
            step = epoch * plan.steps_per_epoch + number
            trainer.engine.set_learning_rates(trainer.schedule.rates(step))
            local = torch.arange(rows.num_rows, device=world.device)
            totals += optimizer_step(
                trainer.engine,
                trainer.sources,
                rows,
                plan.micro_batches(local, world.rank),
                plan.seed,
                step,
            )
            bar.update(rows.num_rows)
            if every is not None and (step + 1) % every == 0 and number + 1 < plan.steps_per_epoch:
                seconds, parts = (
                    time.perf_counter() - started,
                    world.gather_rows(totals.unsqueeze(0), [1] * world.size).cpu(),
                )
                _save(
                    trainer,
                    Position(epoch, number + 1, position.records, position.best, parts, seconds),
                    files,
                    "step",
                )
    if epoch + 1 < trainer.recipe.train.epochs:
        trainer.train_rows.prepare(plan, epoch + 1)  # its first rows are read while we validate
    train_losses = world.sum(totals) / plan.steps_per_epoch
    trained = time.perf_counter() - started
    val_loss, metrics = validate(trainer)
    return {
        "epoch": epoch + 1,
        "train_loss": float(train_losses[0]),
        "val_loss": val_loss,
        **{
            f"{task.name}_{metric}": value
            for task in tasks
            for metric, value in metrics[task.column].items()
        },
        **{
            f"train_loss_{task.name}": float(loss)
            for task, loss in zip(tasks, train_losses[1:], strict=True)
        },
        **{
            f"sigma_{task.name}": float(sigma)
            for task, sigma in zip(
                tasks, (0.5 * trainer.model.loss.log_variance.detach()).exp(), strict=True
            )
        },
        "gradient_norm": trainer.engine.gradient_norm,
        "learning_rates": trainer.schedule.rates((epoch + 1) * plan.steps_per_epoch - 1),
        "seconds": time.perf_counter() - started,
        "rows_per_s": plan.num_rows / trained,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def validate(trainer: Trainer) -> tuple[float, dict[str, dict[str, float | None]]]:
    """Return the validation loss and each task's metrics, on every rank; ranks share the rows."""
    rows, world, recipe = trainer.validation_rows, trainer.world, trainer.recipe
    num_tasks, tables = len(recipe.tasks), string_tables(trainer)
    # outputs, targets and weight: all that metrics need of a row
    own = [torch.zeros(0, 2 * num_tasks + 1, device=world.device)]
    for block in rows.blocks(world.rank, world.size):
        outputs = forward_rows(
            trainer.model, tables, block, recipe.train.eval_batch_rows, progress=world.is_main
        )
        own.append(torch.cat([outputs, block.targets, block.weight.unsqueeze(1)], dim=1))
    outputs, targets, weight = world.gather_rows(torch.cat(own), rows.shares(world.size)).split(
        [num_tasks, num_tasks, 1], dim=1
    )
    result: tuple[float, dict[str, dict[str, float | None]]] | None = None
    if world.is_main:
        denominators = (weight * targets.isfinite()).sum(0)
        with torch.no_grad():
            loss = trainer.model.loss(outputs, targets, weight.squeeze(1), denominators, 1.0).total
        predictions = to_units(outputs, recipe.tasks, trainer.cache.scaling)
        result = (
            float(loss),
            task_metrics(recipe.tasks, targets.cpu().numpy(), predictions.cpu().numpy()),
        )
    return world.broadcast(result)


def string_tables(trainer: Trainer) -> list[Float[Tensor, "_ _"]]:
    """Return the present vectors of all strings, one table per string column."""
    with trainer.model.autocast():
        return [source.vectors_of_all_strings() for source in trainer.sources]


def _save(trainer: Trainer, position: Position, files: RunFiles, moment: str) -> None:
    """Write a checkpoint (collective; rank 0 writes)."""
    content = checkpoint_content(
        trainer.engine,
        position,
        trainer.plan.steps_per_epoch,
        trainer.train_rows.order,
        files.config,
    )
    if trainer.world.is_main:
        names = [spec.name for spec in trainer.cache.layout.strings]
        vectors = {
            name: table.float().cpu()
            for name, table in zip(names, string_tables(trainer), strict=True)
        }
        save_checkpoint(
            files.checkpoint(moment), {**content, **files.shareable, "vectors": vectors}
        )
