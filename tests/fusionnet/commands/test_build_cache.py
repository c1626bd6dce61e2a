"""Which process reads the config before it imports torch: one that is alone, by any launcher."""

import sys
from typing import NoReturn

import pytest

from embedcache import ranks
from embedcache.errors import ConfigError
from fusionnet.commands import build_cache

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2"}
ONE_TASK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}


class JoinedError(Exception):
    """The config was left to rank 0."""


def join() -> NoReturn:
    """Stand for the meeting with the other ranks."""
    raise JoinedError


@pytest.mark.parametrize(
    ("environment", "error"),
    [({}, ConfigError), (ONE_TASK, ConfigError), (TORCHRUN, JoinedError), (SRUN, JoinedError)],
    ids=["python", "srun of one", "torchrun", "srun"],
)
def test_a_wrong_config_is_reported_by_one_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], error: type[Exception]
) -> None:
    for name in {*TORCHRUN, *SRUN}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "joined_ranks", join)
    monkeypatch.setattr(sys, "argv", ["build_cache", "--config", "nothing.yaml"])
    with pytest.raises(error):
        build_cache.main()
