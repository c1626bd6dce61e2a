"""How long a run will take, told before its first step.

One micro-batch and one encoding are tried on made-up rows, forward and backward, and multiplied by
how often the run takes them. The model and the random state are left as they were. Steps on a GPU
take milliseconds and are not forecast.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from embedcache.live.features import bare
from embedcache.live.shared import SharedColumn
from embedcache.live.sources import EncoderSource, VectorSource
from fusionnet.rows.tensors import empty_rows
from fusionnet.train.trainer import Trainer

MOST_STRINGS = 32  # in the trial; more take in proportion to their tokens
# Of the seconds that the network takes for a row in training: benchmarks/results has 2,004 rows/s
# there and 9,761 in evaluation (fp32), 4,055 and 17,450 (bf16).
EVALUATION = 0.2
ENCODED = 0.45  # of the seconds that an encoder of polyBERT's size takes for a token both ways
LONG_S = 300.0  # of encoding, that one is told how to do without


class Seconds(NamedTuple):
    """What all epochs take."""

    network: float
    encoder: float

    @property
    def total(self) -> float:
        """Both, one after the other."""
        return self.network + self.encoder


def forecast(trainer: Trainer) -> str:
    """Return the line that says how long the run will take; ranks try it alike."""
    found = forecast_s(trainer)
    seconds = found.total
    text = f"about {duration(seconds)} for {trainer.recipe.train.epochs} epochs"
    if found.encoder > max(LONG_S, seconds / 2):
        text += (
            f"\nNOTE       {duration(found.encoder)} of them train the encoder; with"
            " encoder.mode=frozen the network learns from the cache's vectors alone, in about"
            f" {duration(found.network)}"
        )
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and time.time() + seconds > int(end):
        text += (
            f"\nNOTE       this Slurm job ends in {duration(int(end) - time.time())}: set"
            " train.checkpoint_steps, and continue with --resume in a second job"
        )
    return text


def forecast_s(trainer: Trainer) -> Seconds:
    """Return the seconds that all epochs will take, by one micro-batch and one encoding."""
    plan, world = trainer.plan, trainer.world
    own = max(plan.step_sizes) / (world.size * plan.num_micro_batches)
    with torch.random.fork_rng(devices=[]), trainer.model.autocast():
        micro_batch = micro_batch_s(trainer, max(1, round(own)))
        encoding = sum(
            epoch_encoding_s(trainer, source, num_columns, round(own))
            for source, num_columns in _encoders(trainer.sources)
        )
    validation = EVALUATION * micro_batch * trainer.validation_rows.num_rows / (own * world.size)
    epochs, steps = trainer.recipe.train.epochs, plan.steps_per_epoch
    network = steps * plan.num_micro_batches * micro_batch + validation
    return Seconds(epochs * network, epochs * encoding)


def micro_batch_s(trainer: Trainer, num_rows: int) -> float:
    """Return the seconds of one micro-batch in the network: forward, loss and all gradients."""
    layout, model, device = trainer.cache.layout, trainer.model, trainer.world.device
    rows = empty_rows(layout, num_rows).to(device)
    for column in (rows.string_id, rows.numeric, rows.category, rows.targets, rows.row):
        column.zero_()
    rows.weight.fill_(1)
    vectors = [
        torch.zeros(spec.num_strings, spec.full_width, device=device, requires_grad=True)
        for spec in layout.strings
    ]
    trained = [each for each in model.network.parameters() if each.requires_grad]

    def once() -> None:
        parts = model(
            vectors=vectors,
            inputs=rows.inputs,
            targets=rows.targets,
            weight=rows.weight,
            denominators=rows.loss_denominators(),
            share=1.0,
        )
        torch.autograd.grad(parts.total, [*trained, *vectors], allow_unused=True)

    return _seconds(once)


def _encoders(sources: Sequence[VectorSource]) -> list[tuple[EncoderSource, int]]:
    """Return what encodes strings, and of how many columns each; one that columns share once."""
    columns = map(bare, sources)
    found = [each.live if isinstance(each, SharedColumn) else each for each in columns]
    return [
        (each, found.count(each))
        for each in dict.fromkeys(found)
        if isinstance(each, EncoderSource)
    ]


def epoch_encoding_s(
    trainer: Trainer, source: EncoderSource, num_columns: int, micro_batch_rows: int
) -> float:
    """Return the seconds in which one rank encodes all that it does in an epoch.

    Each step's strings go both ways, and at its end all strings forwards.
    """
    plan, mode, lengths = trainer.plan, trainer.recipe.mode, source.lengths
    ids = torch.arange(min(len(lengths), MOST_STRINGS))
    trained = [each for each in source.encoder.parameters() if each.requires_grad]

    def once() -> None:
        vectors = source.encode(ids)
        torch.autograd.grad(vectors, trained, torch.ones_like(vectors), allow_unused=True)

    if mode == "naive":
        tokens = float(lengths.max()) * micro_batch_rows * plan.num_micro_batches
    elif mode == "per_microbatch":
        distinct = min(len(lengths), micro_batch_rows)
        tokens = int(lengths.sum()) * distinct / len(lengths) * plan.num_micro_batches
    else:
        distinct = min(len(lengths), num_columns * max(plan.step_sizes))
        tokens = int(lengths.sum()) * distinct / len(lengths)
    tokens = tokens * plan.steps_per_epoch + ENCODED * int(lengths.sum())
    return _seconds(once) * tokens / int(lengths[ids].sum())


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _seconds(once: Callable[[], None]) -> float:
    """Return the seconds of a call, after one that makes what the first one makes."""
    once()
    started = time.perf_counter()
    once()
    return time.perf_counter() - started
