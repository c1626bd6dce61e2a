"""A run trained for two epochs on the tiny table, by the command that users call."""

from pathlib import Path

import pytest
from forks import Forks


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment: Path, forks: Forks, repository: Path) -> Path:
    forks.run(repository / "jobs" / "train.py", "--config", tiny_experiment)
    return tiny_experiment.parent / "run"
