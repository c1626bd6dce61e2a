"""Optimizer steps in one mode, taken as training takes them, on rows that a benchmark chooses.

The yardsticks that training does not offer (length-bucketed, compiled) are the naive source with
one thing changed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.harness.setting import PADDED, experiment_of
from benchmarks.harness.timing import Phases, timed
from embedcache.cache.reader import Cache, open_cache
from embedcache.encoder.batching import MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.model import PackedPass, StringEncoder
from embedcache.encoder.tokens import TokenTable
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.train.step import optimizer_step
from fusionnet.train.trainer import make_trainer
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of


@dataclass(frozen=True)
class Mode:
    """One way of getting string vectors during a step."""

    encoding: str  # encoder.mode
    what: str
    pad_to: int | None = None
    bucketed: bool = False
    compiled: bool = False
    precision: str | None = None  # None: the run's

    @property
    def is_naive(self) -> bool:
        """Whether every row is encoded."""
        return self.encoding == "naive"


MODES = {
    "naive_128": Mode(
        "naive", "every row encoded, padded to 128 tokens (as specified)", pad_to=PADDED
    ),
    "naive_longest": Mode("naive", "every row encoded, padded to the longest string"),
    "naive_bucketed": Mode("naive", "every row encoded, in batches of like length", bucketed=True),
    "naive_128_bf16": Mode("naive", "as naive_128, in bf16", pad_to=PADDED, precision="bf16"),
    "naive_compiled": Mode(
        "naive", "as naive_128, the encoder by torch.compile", pad_to=PADDED, compiled=True
    ),
    "per_microbatch": Mode("per_microbatch", "torch.unique in each micro-batch"),
    "per_step": Mode("per_step", "distinct strings once per optimizer step"),
    "prefix": Mode("prefix", "LoRA on the top quarter of the layers, what enters them cached"),
    "frozen": Mode("frozen", "no LoRA: vectors from the cache"),
}


@once
def world() -> World:
    """Return this process's one process group.

    Only what trains by DeepSpeed joins one: other libraries change their ways inside of it.
    """
    return World()


def device() -> torch.device:
    """Return the device that `World` would choose, without joining a process group."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    return torch.device("cuda" if on_gpu else "cpu")


class Stepper:
    """A trainer in one mode that takes optimizer steps on rows that the caller chooses.

    It tells their time, phases and encoder tokens.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        precision: str,
        batch_rows: int,
        micro_rows: int | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        mode = MODES[name]
        experiment = experiment_of(folder, mode.encoding, mode.precision or precision, overrides)
        self.cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, self.cache)
        rows = {"batch_rows": batch_rows, "micro_batch_rows": micro_rows}
        recipe = replace(recipe, train=recipe.train.model_copy(update=rows))
        self.trainer = make_trainer(
            recipe, experiment.optim, self.cache, world(), pad_to=mode.pad_to
        )
        self.trainer.model.train()
        self.phases = Phases()
        self.number = 0  # of steps taken
        self.losses: Tensor | None = None  # of the last step: the total, then each task's
        # of the last step, padding included: what the encoder read, in how many passes
        self.tokens = self.passes = self.token_pairs = 0
        change_source(self.trainer.model, mode)
        self._watch()

    def step(self, batch: RowTable) -> float:
        """Take one step and return its seconds.

        `phases.seconds` and `tokens` are then those of this step.
        """
        trainer = self.trainer
        trainer.engine.set_learning_rates(trainer.schedule.rates(0))
        order = torch.randperm(batch.num_rows).to(world().device)
        parts = trainer.plan.micro_batches(batch.num_rows, world().rank)

        def work() -> None:
            with self.phases.inside("read rows"):
                rows = batch.take(order)
            self.losses = optimizer_step(
                trainer.engine, trainer.sources, rows, parts, 0, self.number
            )

        self.tokens = self.passes = self.token_pairs = 0
        self.phases.reset()
        seconds = timed(work)
        self.phases.finish()
        self.number += 1
        return seconds

    def _watch(self) -> None:
        """Count phases and tokens by hooks on the modules, whoever calls them."""
        model, engine, phases = self.trainer.model, self.trainer.engine, self.phases
        phases.watch(model.network, "fusion forward")
        phases.watch(model.loss, "loss")
        for encoder in model.encoders.values():
            phases.watch(encoder, "encode", backward="backward: encoder")
            self._count_tokens(encoder)
        engine.backward = phases.wrap("backward: fusion", engine.backward)
        engine.step = phases.wrap("update", engine.step)

    def _count_tokens(self, encoder: StringEncoder) -> None:
        """Count what the encoder reads in each pass.

        Padded batches count with their padding, strings laid end to end without.
        """
        padded, packed = encoder._encode_padded, encoder._encode_packed

        def count(num_tokens: int, token_pairs: int) -> None:
            self.tokens += num_tokens
            self.token_pairs += token_pairs
            self.passes += 1

        def counted_padded(tokens: TokenTable, pad_to: int | None = None) -> Tensor:
            length = pad_to or int(tokens.lengths.max())
            count(tokens.num_strings * length, tokens.num_strings * length**2)
            return padded(tokens, pad_to)

        def counted_packed(one: PackedPass) -> Tensor:
            groups = one.packing.groups
            count(len(one.values), sum(each.num_strings * each.longest**2 for each in groups))
            return packed(one)

        encoder._encode_padded, encoder._encode_packed = counted_padded, counted_packed


def change_source(model: TrainableModel, mode: Mode) -> None:
    """Make the yardsticks that training does not offer out of the naive source."""
    if mode.compiled:
        for encoder in model.encoders.values():
            encoder.model.compile(dynamic=False)
    if mode.bucketed:
        for encoder in model.encoders.values():
            encoder.forward = lambda tokens, pad_to=None, encoder=encoder: _bucketed(
                encoder, tokens
            )


def _bucketed(encoder: StringEncoder, tokens: TokenTable) -> Tensor:
    """Return the vectors of all rows as the plain model gives them, in batches of like length."""
    batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
    return torch.cat([encoder._encode_padded(tokens.take(ids)) for ids in batches])[
        torch.cat(batches).argsort()
    ]


def batch_of(
    cache: Cache, num_rows: int, string_id: Int[Tensor, " B"] | None = None, seed: int = 0
) -> RowTable:
    """Return train rows drawn by the seed; `string_id` replaces their strings."""
    rows = load_rows(cache, "train", device())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(rows.num_rows, (num_rows,), generator=generator)
    batch = rows.take(chosen.to(device()))
    if string_id is None:
        return batch
    return replace(batch, string_id=string_id.unsqueeze(1).to(device()))
