"""A rank that dies ends the job, with its message and without a hang, whichever launcher started
it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": (str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", "29631"),
    "torchrun": (str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", "29632"),
}


@pytest.mark.parametrize("how", ["raises", "killed"])
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_rank_that_dies_ends_the_job(
    how: str, launcher: str, tiny_experiment: Path, tmp_path: Path
) -> None:
    worker = Path(__file__).with_name("faulty_train.py")
    command = [
        *LAUNCHERS[launcher],
        str(worker),
        how,
        "--config",
        str(tiny_experiment),
        "--set",
        f"run.dir={tmp_path / 'run'}",
        "--set",
        "train.epochs=500",
    ]
    started = time.monotonic()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert ("rank 1 has had enough" if how == "raises" else "-9") in said, said
    assert time.monotonic() - started < 200
    assert not (tmp_path / "run" / "tiny_final.pt").exists()
