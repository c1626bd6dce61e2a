"""When a run writes a checkpoint inside an epoch, and what it refuses to call a validation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import NonFinitePredictionError
from fusionnet.assemble import build_model
from fusionnet.experiment import load_experiment
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.streaming import open_rows
from fusionnet.train import validation
from fusionnet.train.loop import checkpoint_due
from fusionnet.train.trainer import Trainer
from fusionnet.train.validation import validate
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of


def test_checkpoints_are_due_inside_epochs_alone() -> None:
    def due(every: int | None, steps_per_epoch: int) -> list[int]:
        return [step for step in range(12) if checkpoint_due(step, every, steps_per_epoch)]

    assert due(2, 6) == [1, 3, 7, 9]  # steps 5 and 11 end an epoch, which has its own
    assert due(4, 6) == [3, 7]
    assert due(1, 1) == []
    assert due(None, 6) == []


def test_validation_rows_without_finite_predictions_are_named(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(tiny_experiment, ["train.precision=fp32"])
    cache, world = open_cache(experiment.cache.path), World()
    recipe = recipe_of(experiment, cache)
    rows = open_rows(cache, recipe.train, world.device)[1]
    trainer = object.__new__(Trainer)  # with what validation reads alone
    model = build_model(recipe, cache.layout, cache.scaling, live=False)
    vars(trainer).update(validation_rows=rows, world=world, recipe=recipe, model=model, cache=cache)

    def outputs(
        model: TrainableModel, tables: list[torch.Tensor], block: Any, *_: object
    ) -> Iterator[torch.Tensor]:
        found = torch.zeros(block.num_rows, len(recipe.tasks))
        found[[2, 5], 1] = torch.tensor([torch.nan, torch.inf])
        yield from found.split(4)

    monkeypatch.setattr(validation, "forward_batches", outputs)
    numbers = torch.cat([block.row for block in rows.blocks(0, 1)])[[2, 5]].tolist()
    with pytest.raises(
        NonFinitePredictionError,
        match=rf"2 rows of \d+ have predictions of good .*: rows {numbers[0]}, {numbers[1]}\.",
    ):
        validate(trainer, [])
