"""Run by test_prove.py in one process per rank: plant faults between ranks that share strings and
partition gradients, prove a step with each, and print which were seen.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import ProofError
from embedcache.live import sharding
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.train import step as train_step
from fusionnet.train.engine import Engine
from fusionnet.train.loop import watched
from fusionnet.train.proof import prover
from fusionnet.train.resume import Position
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of

OVERRIDES = [
    "train.cpu_threads=1",
    "train.prove=1",
    "train.batch_rows=60",
    "train.micro_batch_rows=15",
    "train.zero_stage=2",
    "optim.warmup_epochs=0",
    "optim.lr_encoder=0.01",
    "model.standardize_vectors=false",
    "encoder.encode_sharding=shard",
]


def gradient_of_a_rank_lost(world: World) -> Any:
    backward = Engine.backward

    def change(self: Engine, loss: torch.Tensor) -> None:
        backward(self, loss * (world.rank == 0))

    return mock.patch.object(Engine, "backward", change)


def ranks_are_not_averaged_away(world: World) -> Any:
    loss_of = train_step._micro_batch_loss

    def change(*words: Any) -> Any:
        loss, parts = loss_of(*words)
        return loss / world.size, parts

    return mock.patch.object(train_step, "_micro_batch_loss", change)


def both_ranks_read_the_same_rows(_: World) -> Any:
    cut = StepPlan.micro_batches
    return mock.patch.object(StepPlan, "micro_batches", lambda own, num, rank: cut(own, num, 0))


def shared_strings_keep_one_ranks_gradient(_: World) -> Any:
    return mock.patch.object(sharding.dist, "all_reduce", unless_floating(sharding.dist.all_reduce))


def unless_floating(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """Return an all-reduce that leaves gradients of vectors, [U, E], as they are."""

    def change(tensor: torch.Tensor, *words: Any, **named: Any) -> Any:
        if tensor.is_floating_point() and tensor.dim() == 2:
            return None
        return reduce(tensor, *words, **named)

    return change


def is_seen(trainer: Trainer, rows: Any) -> bool:
    """Return whether a proof of the step fails."""
    witness = trainer.steps.witness
    assert witness is not None
    try:
        witness.look(1, rows)
    except ProofError:
        return True
    return False


def main() -> None:
    """Arguments: config, run folder."""
    world = World()
    torch.set_num_threads(1)
    prover.MOST_ROWS, prover.OWN_TOKENS, prover.ROWS_READ_AGAIN = 24, 20, 2
    experiment = load_experiment(sys.argv[1], OVERRIDES)
    cache = open_cache(experiment.cache.path)
    trainer = make_trainer(recipe_of(experiment, cache), experiment.optim, cache, world)
    trainer.model.train()
    watched(trainer, Position(), RunFiles(Path(sys.argv[2]), "tiny", {}, {}))
    witness, trainer.steps.witness = trainer.steps.witness, None
    next(trainer.steps.of_epoch(0))
    trainer.steps.witness = witness
    rows = next(trainer.train_rows.steps(trainer.plan, 0, 1))
    seen = {"nothing": is_seen(trainer, rows)}
    for plant in (
        gradient_of_a_rank_lost,
        ranks_are_not_averaged_away,
        both_ranks_read_the_same_rows,
        shared_strings_keep_one_ranks_gradient,
    ):
        with plant(world):
            seen[plant.__name__] = is_seen(trainer, rows)
    if world.is_main:
        print(json.dumps(seen))
    world.close()


if __name__ == "__main__":
    main()
