"""Run by test_step.py in one process per rank: train a few steps in every mode and accumulation, and save the parameters of rank 0."""

import json
import sys
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from embedcache.store import open_cache
from fusionnet.assemble import Recipe, observed_tasks
from fusionnet.train.engine import World
from fusionnet.train.loop import make_trainer
from fusionnet.train.step import optimizer_step
from jobs.experiment import load_experiment


def main() -> None:
    """Arguments: config, output file, JSON list of overrides, JSON list of cases (mode, num_micro_batches, num_steps)."""
    config, output, overrides, cases = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(1)
    world = World()
    if "train.precision=fp16" in overrides:  # torch computes in fp16 on any CPU; DeepSpeed asks for fast instructions
        type(get_accelerator()).is_fp16_supported = lambda _: True
    results = {}
    for mode, num_micro_batches, num_steps in cases:
        experiment = load_experiment(config, [*overrides, f"encoder.mode={mode}"])
        cache = open_cache(experiment.cache.path)
        micro_rows = -(-experiment.train.batch_rows // (world.size * num_micro_batches))
        train = experiment.train.model_copy(update={"micro_batch_rows": micro_rows, "cpu_threads": 1})
        recipe = Recipe(observed_tasks(experiment.tasks, cache.layout), (experiment.encoder,) * 2, experiment.model, experiment.loss, train)
        trainer = make_trainer(recipe, experiment.optim, cache, world)
        trainer.model.train()
        losses = []
        for step, positions in zip(range(num_steps), trainer.plan.steps(0), strict=False):
            trainer.engine.set_learning_rates(trainer.schedule.rates(step))
            parts = trainer.plan.micro_batches(torch.arange(len(positions)), world.rank)
            losses.append(world.sum(optimizer_step(trainer.engine, trainer.sources, trainer.train_rows.take(positions), parts, 0, step)))
        results[f"{mode}/{num_micro_batches}"] = {"state": trainer.model.trainable_state(), "losses": torch.stack(losses)}
    if world.is_main:
        torch.save(results, output)
    world.barrier()
    world.close()


if __name__ == "__main__":
    main()
