"""One optimizer step: every distinct string encoded once, every row read once, one update.

All randomness of a step is a function of (seed, step, rank), so that a run resumes bitwise by
counting. The encoder's is the same on all ranks: a string has one dropout mask per step, whichever
rank reads it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.errors import NonFiniteLossError
from embedcache.kernels.seeds import seed_draws
from embedcache.live.shared import vectors_of_all_columns
from embedcache.live.sources import VectorSource
from fusionnet.model.loss import LossParts
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import RowSource
from fusionnet.rows.tensors import RowTable
from fusionnet.train.protocols import StepEngine, Witness
from fusionnet.train.schedule import Schedule
from fusionnet.train.tally import Tally


class EngineSteps:
    """The steps of a run, each taken from Python; rows may come from anywhere, ranks be many."""

    num_replays = 0

    def __init__(
        self,
        engine: StepEngine,
        sources: Sequence[VectorSource],
        rows: RowSource,
        plan: StepPlan,
        schedule: Schedule,
        tally: Tally,
    ) -> None:
        self._engine, self._sources, self._rows = engine, sources, rows
        self._plan, self._schedule, self._tally = plan, schedule, tally
        self.witness: Witness | None = None

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Float[Tensor, " losses"]]:
        """Take an epoch's steps from step `first` on, and yield each one's losses."""
        plan, engine = self._plan, self._engine
        steps = self._rows.steps(plan, epoch, first)
        for step, rows in enumerate(steps, epoch * plan.steps_per_epoch + first):
            if self.witness is not None and step in self.witness.due:
                self.witness.look(step, rows)
            engine.set_learning_rates(self._schedule.rates(step))
            own = plan.micro_batches(rows.num_rows, engine.world.rank)
            yield optimizer_step(engine, self._sources, rows, own, plan.seed, step, self._tally)

    def take_once(self, step: int, rows: RowTable) -> None:
        """Take a step of these rows as `of_epoch` does, uncounted."""
        own = self._plan.micro_batches(rows.num_rows, self._engine.world.rank)
        optimizer_step(self._engine, self._sources, rows, own, self._plan.seed, step)

    def settle(self) -> None:
        """Nothing is left: every step raises by itself."""


def optimizer_step(
    engine: StepEngine,
    sources: Sequence[VectorSource],
    rows: RowTable,
    micro_batches: Sequence[slice],
    seed: int,
    step: int,
    tally: Tally | None = None,
) -> Float[Tensor, " losses"]:
    """Update the model once and return this rank's summand of the total and each task's mean loss.

    The summands of all ranks add up to the step's losses.
    `rows` are all rows of the step, of all ranks; `micro_batches` are those of them that this rank
    reads; `tally` counts them. Raises NonFiniteLossError on every rank, before the update, if a
    gradient is not finite (except in fp16, which skips the step and rescales).
    """
    seed_draws(step_seed(seed, step, 0), engine.world.device)
    encode_strings(engine, sources, rows, len(micro_batches))
    seed_draws(step_seed(seed, step, 1 + engine.world.rank), engine.world.device)
    losses = descend(engine, sources, rows, micro_batches, tally)
    if engine.overflowed() and not engine.tolerates_overflow:
        raise NonFiniteLossError(blame(engine, sources, rows, step))
    return losses


def encode_strings(
    engine: StepEngine, sources: Sequence[VectorSource], rows: RowTable, num_micro_batches: int
) -> None:
    """Encode the step's distinct strings, with graph."""
    with trainable(engine).autocast():
        for column, source in enumerate(sources):
            source.begin_step(rows.string_id[:, column], num_micro_batches)


def descend(
    engine: StepEngine,
    sources: Sequence[VectorSource],
    rows: RowTable,
    micro_batches: Sequence[slice],
    tally: Tally | None = None,
) -> Float[Tensor, " losses"]:
    """Read every row once and update; return this rank's summand of the 1 + T losses."""
    if tally is not None:
        tally.expect(rows)
    model, denominators = trainable(engine), rows.loss_denominators()
    losses = denominators.new_zeros(1 + len(denominators))  # [1 + T]
    share = 1 / (engine.world.size * len(micro_batches))
    for positions in micro_batches:
        batch = rows.take(positions)
        loss, parts = _micro_batch_loss(engine, model, sources, batch, denominators, share, tally)
        engine.backward(loss)
        engine.step()
        losses[0] += parts.total.detach()
        losses[1:] += parts.task_sums / denominators.clamp_min(torch.finfo(torch.float32).tiny)
    for source in sources:
        source.end_step()
    return losses


def trainable(engine: StepEngine) -> TrainableModel:
    """Return the engine's model."""
    assert isinstance(engine.model, TrainableModel)
    return engine.model


def _micro_batch_loss(
    engine: StepEngine,
    model: TrainableModel,
    sources: Sequence[VectorSource],
    batch: RowTable,
    denominators: Float[Tensor, " T"],
    share: float,
    tally: Tally | None,
) -> tuple[Float[Tensor, ""], LossParts]:
    """Return the loss to back-propagate for one micro-batch, and its parts."""
    with model.autocast():
        read = [source.read(batch.string_id[:, column]) for column, source in enumerate(sources)]
    if tally is not None:
        tally.note(batch, read)
    index = batch.string_id  # of no columns where there are none
    if read:
        index = torch.stack([each.vector_index for each in read], dim=1)
    parts = engine(
        vectors=[each.vectors for each in read],
        inputs=replace(batch.inputs, string_id=index),
        targets=batch.targets,
        weight=batch.weight,
        denominators=denominators,
        share=share,
    )
    return parts.total * engine.world.size, parts


def blame(engine: StepEngine, sources: Sequence[VectorSource], rows: RowTable, step: int) -> str:
    """Return a message naming the rows whose outputs are not finite, where they can be told."""
    with torch.no_grad():
        vectors = vectors_of_all_columns(sources)
        outputs = trainable(engine).outputs(vectors, rows.inputs)
    bad = rows.row[~outputs.isfinite().all(dim=1)]
    found = (
        f"{len(bad)} of {rows.num_rows} rows give non-finite outputs, the first are table rows"
        f" {bad[:8].tolist()}"
        if len(bad)
        else "each row alone is finite"
    )
    return (
        f"step {step}: the loss or a gradient became NaN or infinite; nothing was updated. In this"
        f" step {found}. Check these rows' features, or lower optim.lr, or use train.precision=fp32"
    )


def step_seed(seed: int, step: int, stream: int) -> int:
    """Return the seed of one stream of random numbers of a step; torch takes 64 bits."""
    return ((seed * 1_000_003 + step) * 65_537 + stream) % 2**63
