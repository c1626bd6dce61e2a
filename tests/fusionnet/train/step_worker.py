"""Run by test_step.py in one process per rank: train a few steps in every mode, ZeRO stage and
accumulation, and save the parameters of rank 0.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator

from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment
from fusionnet.train.step import optimizer_step
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of


def main() -> None:
    """Arguments: config, output file, JSON list of overrides, JSON list of cases (mode,
    num_micro_batches, num_steps, further overrides).
    """
    config, output, overrides, cases = (
        sys.argv[1],
        Path(sys.argv[2]),
        json.loads(sys.argv[3]),
        json.loads(sys.argv[4]),
    )
    torch.set_num_threads(1)
    world = World()
    # torch computes in fp16 on any CPU; DeepSpeed asks for fast instructions
    if "train.precision=fp16" in overrides:
        type(get_accelerator()).is_fp16_supported = lambda _: True
    results = {}
    for mode, num_micro_batches, num_steps, further in cases:
        everything = [*overrides, *further, f"encoder.mode={mode}"]
        trainer = new_trainer(config, everything, num_micro_batches, world)
        losses, reduced = [], 0
        for step, rows in zip(
            range(num_steps), trainer.train_rows.steps(trainer.plan, 0), strict=False
        ):
            if further and step == num_steps // 2:  # as a killed run that is resumed
                state = trainer.engine.state()
                trainer = new_trainer(config, everything, num_micro_batches, world)
                trainer.engine.load_state(state)
            trainer.engine.set_learning_rates(trainer.schedule.rates(step))
            parts = trainer.plan.micro_batches(rows.num_rows, world.rank)
            with mock.patch(
                "torch.distributed.all_reduce", side_effect=torch.distributed.all_reduce
            ) as spied:
                own_losses = optimizer_step(trainer.engine, trainer.sources, rows, parts, 0, step)
            reduced += sum(
                (call.args[0] if call.args else call.kwargs["tensor"]).numel()
                for call in spied.call_args_list
            )
            losses.append(world.sum(own_losses))
        key = "/".join((mode, str(num_micro_batches), *further))
        results[key] = {
            "state": trainer.model.trainable_state(),
            "losses": torch.stack(losses),
            "reduced": reduced,
        }
    if world.is_main:
        torch.save(results, output)
    world.barrier()
    world.close()


def new_trainer(config: str, overrides: list[str], num_micro_batches: int, world: World) -> Trainer:
    """Return a trainer at step 0 whose ranks read so many micro-batches."""
    experiment: Any = load_experiment(config, overrides)
    cache = open_cache(experiment.cache.path)
    micro_rows = -(-experiment.train.batch_rows // (world.size * num_micro_batches))
    train = experiment.train.model_copy(update={"micro_batch_rows": micro_rows, "cpu_threads": 1})
    recipe = recipe_of(experiment.model_copy(update={"train": train}), cache)
    trainer = make_trainer(recipe, experiment.optim, cache, world)
    trainer.model.train()
    return trainer


if __name__ == "__main__":
    main()
