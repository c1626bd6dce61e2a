"""Training: epochs of optimizer steps, validation, checkpoints, the log.

The run folder is written by rank 0 alone, beside the next steps (`runfiles`). After each epoch
`<name>_last.pt` holds everything that continuing needs; `<name>_best.pt` (the epoch that `monitor`
finds best) and `<name>_final.pt` what predicting needs.
How a run goes on from a checkpoint, also from one inside an epoch, is told in `resume`.

A run that is told to stop (`stopping`) leaves such a checkpoint. All ranks must stop after the same
step, so they ask each other after each: 0.2 ms of CPU on two ranks by gloo, where a step of the
tests' tiny encoder takes 43. A validation that is given up (`validation`) leaves one too, with all
steps of its epoch, and is begun again: nothing in it depends on chance, so its numbers are the
same.
"""

import time
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from fusionnet.rows.resident import ResidentRows
from fusionnet.stopping import at_checkpoints, is_asked, stopped
from fusionnet.train.callbacks import NO_CALLBACKS, Callbacks, Record
from fusionnet.train.monitor import best_epoch, stopped_early
from fusionnet.train.proof.prover import Prover, due_steps, subject_of
from fusionnet.train.proof.record import ProofFile, proof_path
from fusionnet.train.resume import Position, checkpoint_content, own_totals, resumed
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.runlog import RunLog, peak_rss_bytes
from fusionnet.train.trainer import Trainer
from fusionnet.train.validation import StringTables, Validated, string_tables, validate


def train_run(
    trainer: Trainer, files: RunFiles, resume: bool, callbacks: Callbacks = NO_CALLBACKS
) -> list[Record]:
    """Train to the last epoch, or until a callback ends it, and return the log's records.

    The last record of a run that ends before its last epoch says why, as `stopped`: by a callback,
    or by `train.early_stopping`.
    """
    train = trainer.recipe.train
    found = resumed(trainer.engine, files, trainer.train_rows.order) if resume else None
    position = Position() if found is None else found[1]
    proofs = watched(trainer, position, files)
    log = None
    if trainer.world.is_main:
        log = RunLog(files.folder, trainer.recipe.tasks, files.tracked_by, trainer.verbose)
        if found is not None:
            files.go_on(found[0], position.records, position.step, log)
        log.show_all(position.records)
        callbacks.begin()
    is_last = position.epoch == train.epochs or bool(stopped_early(position.records, train))
    with files, at_checkpoints():
        while not is_last:
            record, tables = run_epoch(trainer, position, files)
            records = [*position.records, record]
            asked = trainer.world.broadcast(callbacks.epoch_ended(record))
            reason = asked or stopped_early(records, train)
            is_last = len(records) == train.epochs or reason is not None
            if reason is not None and len(records) < train.epochs:
                record["stopped"] = reason
            improved = best_epoch(records, train.monitor) == len(records)
            best = position.best if record["val_loss"] is None else record["val_loss"]
            position = Position(
                epoch=position.epoch + 1, records=records, best=min(position.best, best)
            )
            content = _content(trainer, position, files, tables)
            del tables  # or a GPU would hold them through the next epoch
            if log is not None:
                files.publish_epoch(content, log, record, improved)
            trainer.world.barrier()
            if not is_last and trainer.world.any(is_asked()):
                leave(trainer, position, files)
    if log is not None:
        if trainer.verbose:
            print(proofs.line(sum(record["seconds"] for record in position.records)))
        files.publish_end()
        log.end()
        callbacks.end()
    trainer.world.barrier()
    return position.records


def watched(trainer: Trainer, position: Position, files: RunFiles) -> ProofFile:
    """Let steps of the run be proven from now on, and return where that is written."""
    recipe, plan = trainer.recipe, trainer.plan
    due = due_steps(recipe, plan)
    first = position.epoch * plan.steps_per_epoch + position.step
    file = files.proofs = ProofFile(proof_path(files.folder, files.name), due, first)
    if due:
        subject = subject_of(trainer.model, recipe, trainer.cache)
        trainer.steps.witness = Prover(
            subject,
            trainer.cache,
            trainer.engine,
            trainer.steps,
            trainer.sources,
            plan,
            trainer.optim,
            file,
        )
    return file


class Epoch(NamedTuple):
    """A finished epoch: its record in the log, and the vectors of all strings that it leads to."""

    record: Record
    tables: StringTables


def run_epoch(trainer: Trainer, position: Position, files: RunFiles) -> Epoch:
    """Train the rest of the position's epoch, and validate.

    All strings are encoded once for validation and checkpoint: where they are as many as rows, that
    takes nearly as long as the steps.
    """
    started = time.perf_counter() - position.seconds
    losses = train_steps(trainer, position, files, started)
    num_steps = trainer.plan.steps_per_epoch
    trained = _reached(trainer, position, num_steps, losses, started)
    if position.epoch + 1 < trainer.recipe.train.epochs:
        # its first rows are read while we validate
        trainer.train_rows.prepare(trainer.plan, position.epoch + 1)
    tables = string_tables(trainer)
    validated = validate(trainer, tables)
    if validated is None:
        content = _content(trainer, trained, files, tables)
        if trainer.world.is_main:
            files.publish_step(content)
        leave(trainer, trained, files)
    train_losses = trainer.world.sum(losses) / num_steps
    total_s = time.perf_counter() - started
    return Epoch(epoch_record(trainer, trained, train_losses, validated, total_s), tables)


def train_steps(
    trainer: Trainer, position: Position, files: RunFiles, started: float
) -> Float[Tensor, " losses"]:
    """Take the rest of the epoch's optimizer steps and return this rank's summed losses.

    `started` is the reading of `time.perf_counter` at which the epoch began.
    """
    plan, world = trainer.plan, trainer.world
    trainer.model.train()
    losses = own_totals(position, world, 1 + len(trainer.recipe.tasks))
    trainer.tally.begin()
    with _bar(trainer, position) as bar:
        steps = trainer.steps.of_epoch(position.epoch, position.step)
        for number, own in enumerate(steps, position.step):
            step = position.epoch * plan.steps_per_epoch + number
            losses += own
            bar.update(plan.step_sizes[number])
            if step == 0:
                trainer.steps.settle()
                if world.is_main:
                    files.begin()
            every = trainer.recipe.train.checkpoint_steps
            # after the last step the epoch is finished first, as it must be for its checkpoint
            is_last = number + 1 == plan.steps_per_epoch
            leaving = not is_last and world.any(is_asked())
            if leaving or checkpoint_due(step, every, plan.steps_per_epoch):
                trainer.steps.settle()
                trainer.tally.check(sum(plan.step_sizes[position.step : number + 1]), world)
                reached = _reached(trainer, position, number + 1, losses, started)
                content = _content(trainer, reached, files)
                if world.is_main:
                    files.publish_step(content)
                if leaving:
                    bar.close()
                    leave(trainer, reached, files)
    rows = trainer.train_rows
    whole = rows.table if isinstance(rows, ResidentRows) and position.step == 0 else None
    trainer.tally.check(sum(plan.step_sizes[position.step :]), world, whole)
    return losses


def _reached(
    trainer: Trainer,
    position: Position,
    step: int,
    losses: Float[Tensor, " losses"],
    started: float,
) -> Position:
    """Return the position after `step` steps of its epoch (collective)."""
    world = trainer.world
    return replace(
        position,
        step=step,
        totals=world.gather_rows(losses.unsqueeze(0), [1] * world.size).cpu(),
        seconds=time.perf_counter() - started,
        gradient_norm=(
            position.gradient_norm if step == position.step else trainer.engine.gradient_norm()
        ),
    )


def leave(trainer: Trainer, position: Position, files: RunFiles) -> NoReturn:
    """Stop with the position's checkpoint, which every rank awaits: launchers kill those left."""
    files.wait()
    trainer.world.barrier()
    epochs, steps = trainer.recipe.train.epochs, trainer.plan.steps_per_epoch
    done, moment = f"epoch {position.epoch} of {epochs}", "last"
    if position.step > 0:
        done, moment = f"step {position.step} of {steps} in epoch {position.epoch + 1}", "step"
    raise stopped(
        f"{files.checkpoint(moment)} holds all up to {done}; go on with the same command and"
        " --resume"
    )


def checkpoint_due(step: int, every: int | None, steps_per_epoch: int) -> bool:
    """Return whether a checkpoint follows this optimizer step of the run, counted from 0.

    After an epoch's last step there is none: the epoch's own follows, once it is validated.
    """
    done = step + 1
    return every is not None and done % every == 0 and done % steps_per_epoch != 0


def epoch_record(
    trainer: Trainer,
    trained: Position,
    train_losses: Float[Tensor, " losses"],
    validated: Validated,
    validated_s: float,
) -> Record:
    """Return the log's record of an epoch whose steps are `trained`; seconds since it began."""
    tasks, plan = trainer.recipe.tasks, trainer.plan
    record: Record = {
        "epoch": trained.epoch + 1,
        "train_loss": float(train_losses[0]),
        "val_loss": validated.loss,
        "val_error": validated.error,
    }
    for task in tasks:
        for metric, value in validated.metrics[task.column].items():
            record[f"{task.name}_{metric}"] = value
    for task, loss in zip(tasks, train_losses[1:], strict=True):
        record[f"train_loss_{task.name}"] = float(loss)
    sigmas = (0.5 * trainer.model.loss.log_variance.detach()).exp()
    for task, sigma in zip(tasks, sigmas, strict=True):
        record[f"sigma_{task.name}"] = float(sigma)
    return record | {
        "gradient_norm": trained.gradient_norm,
        "learning_rates": trainer.schedule.rates((trained.epoch + 1) * plan.steps_per_epoch - 1),
        "seconds": validated_s,
        "rows_per_s": plan.num_rows / trained.seconds,
        "graph_replays": trainer.steps.num_replays,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _bar(trainer: Trainer, position: Position) -> tqdm:
    """Return the progress bar of the rows of an epoch, shown by rank 0 alone."""
    return tqdm(
        total=trainer.plan.num_rows,
        initial=sum(trainer.plan.step_sizes[: position.step]),
        unit="rows",
        unit_scale=True,
        desc=f"epoch {position.epoch + 1}",
        leave=False,
        disable=None if trainer.world.is_main and trainer.verbose else True,
    )


def _content(
    trainer: Trainer, position: Position, files: RunFiles, tables: StringTables | None = None
) -> dict[str, Any]:
    """Return a checkpoint's content, which training does not change any more (collective).

    `tables` are the present vectors of all strings, where they have been computed.
    """
    steps_per_epoch, order = trainer.plan.steps_per_epoch, trainer.train_rows.order
    content = checkpoint_content(trainer.engine, position, steps_per_epoch, order, files.config)
    if not trainer.world.is_main:
        return {}
    if tables is None:
        tables = string_tables(trainer)
    columns = zip(trainer.cache.layout.strings, tables, strict=True)
    vectors = {spec.name: table.float().cpu() for spec, table in columns}
    return content | {**files.shareable, "run_id": files.run_id, "vectors": vectors}
