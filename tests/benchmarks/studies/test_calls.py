"""All ways to call a reward are timed on the same rewards."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from benchmarks.studies import calls
from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig, RewardTerm


def test_ways_that_differ_are_not_timed(made_run: Path, tiny_experiment: Path) -> None:
    run = RewardModel.load(made_run).run
    config = RewardConfig(terms=(RewardTerm(task="ef", weight=1.0),))
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet").head(9)
    ways = calls.ways(RewardModel(replace(run, reward=config)), frame, 0.0)
    calls.check(ways)
    with pytest.raises(AssertionError):
        calls.check({**ways, "another": lambda: torch.zeros(9)})
