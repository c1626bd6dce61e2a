"""One optimizer step: every distinct string encoded once, every row read once, one update.

All randomness of a step is a function of (seed, step, rank), so that a run resumes bitwise by
counting. The encoder's is the same on all ranks: a string has one dropout mask per step, whichever
rank reads it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.errors import NonFiniteLossError
from embedcache.live.sources import VectorSource
from fusionnet.model.loss import LossParts
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable
from fusionnet.train.engine import Engine


def optimizer_step(
    engine: Engine,
    sources: Sequence[VectorSource],
    rows: RowTable,
    micro_batches: Sequence[Int[Tensor, " B"]],
    seed: int,
    step: int,
) -> Float[Tensor, " 1+T"]:
    """Update the model once and return this rank's summand of the total and each task's mean loss.

    The summands of all ranks add up to the step's losses.
    `rows` are all rows of the step, of all ranks; `micro_batches` are the positions among them that
    this rank reads. Raises NonFiniteLossError on every rank, before the update, if a gradient is
    not finite (except in fp16, which skips the step and rescales).
    """
    model, world = engine.model, engine.world
    assert isinstance(model, TrainableModel)
    denominators = rows.loss_denominators()
    torch.manual_seed(_step_seed(seed, step, 0))
    with model.autocast():
        for column, source in enumerate(sources):
            source.begin_step(rows.string_id[:, column], len(micro_batches))
    torch.manual_seed(_step_seed(seed, step, 1 + world.rank))
    losses = denominators.new_zeros(1 + len(denominators))  # [1 + T]
    share = 1 / (world.size * len(micro_batches))
    for positions in micro_batches:
        batch = rows.take(positions)
        loss, parts = _micro_batch_loss(engine, model, sources, batch, denominators, share)
        engine.backward(loss)
        engine.step()
        losses[0] += parts.total.detach()
        losses[1:] += parts.task_sums / denominators.clamp_min(torch.finfo(torch.float32).tiny)
    for source in sources:
        source.end_step()
    if engine.overflowed and not engine.tolerates_overflow:
        raise NonFiniteLossError(_blame(model, sources, rows, step))
    return losses


def _micro_batch_loss(
    engine: Engine,
    model: TrainableModel,
    sources: Sequence[VectorSource],
    batch: RowTable,
    denominators: Float[Tensor, " T"],
    share: float,
) -> tuple[Float[Tensor, ""], LossParts]:
    """Return the loss to back-propagate for one micro-batch, and its parts."""
    with model.autocast():
        read = [source.read(batch.string_id[:, column]) for column, source in enumerate(sources)]
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


def _blame(
    model: TrainableModel, sources: Sequence[VectorSource], rows: RowTable, step: int
) -> str:
    """Return a message naming the rows whose outputs are not finite, where they can be told."""
    with torch.no_grad():
        vectors = [source.vectors_of_all_strings() for source in sources]
        outputs = model.outputs(vectors, rows.inputs)
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


def _step_seed(seed: int, step: int, stream: int) -> int:
    return (seed * 1_000_003 + step) * 65_537 + stream
