"""A rank that dies ends the job, with its message and without a hang, whichever launcher started
it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import free_port

pytestmark = pytest.mark.dist
OPTIONS = {
    "deepspeed": ("--num_accelerators", "2", "--master_port"),
    "torchrun": ("--nproc-per-node", "2", "--master-port"),
}


@pytest.mark.parametrize(
    ("how", "launcher"),
    [
        ("raises", "torchrun"),
        pytest.param("killed", "torchrun", marks=pytest.mark.slow),
        pytest.param("raises", "deepspeed", marks=pytest.mark.slow),
        pytest.param("killed", "deepspeed", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_ends_the_job(
    how: str, launcher: str, tiny_experiment: Path, tmp_path: Path
) -> None:
    worker = Path(__file__).with_name("faulty_train.py")
    program = str(Path(sys.executable).with_name(launcher))
    launched = (program, *OPTIONS[launcher], str(free_port()), str(worker), how)
    values = ("--set", f"run.dir={tmp_path / 'run'}", "--set", "train.epochs=500")
    started = time.monotonic()
    done = subprocess.run(
        [*launched, "--config", str(tiny_experiment), *values],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert ("rank 1 has had enough" if how == "raises" else "-9") in said, said
    assert "another rank of this training ended, so rank 0 ends too" in said
    assert "[rank0]: Traceback" not in said
    assert time.monotonic() - started < 200
    assert not (tmp_path / "run" / "tiny_final.pt").exists()
