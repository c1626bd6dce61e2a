"""A run trained for two epochs on the tiny table, by the command that users call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_job(
    *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the jobs in a process of its own."""
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=settings,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment: Path) -> Path:
    run_job("-m", "jobs.train", "--config", str(tiny_experiment))
    return tiny_experiment.parent / "run"
