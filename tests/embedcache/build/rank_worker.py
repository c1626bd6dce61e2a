"""Run by test_ranks.py (through runpy, which sets the upper-case names) in one process per rank:
the build job, with a fault on some rank.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from embedcache.build import vectors
from embedcache.errors import EncoderError
from fusionnet.commands import build_cache
from fusionnet.commands.command import run_job

RANK: int
SIZE: int
PORT: int
LAUNCHER: str
FAULT: tuple[int, int, str] | None  # rank, batch, what
ARGUMENTS: list[str]
OUTPUT: str


def main() -> None:
    """Become a rank as a launcher would make one, and run the job."""
    stream = Path(OUTPUT).open("w")  # noqa: SIM115
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    torch.set_num_threads(1)
    if SIZE > 1 and LAUNCHER == "srun":
        os.environ |= {
            "SLURM_PROCID": str(RANK),
            "SLURM_LOCALID": str(RANK),
            "SLURM_STEP_NUM_TASKS": str(SIZE),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_TASKS_PER_NODE": str(SIZE),
            "SLURM_JOB_ID": str(os.getppid()),
        }
    elif SIZE > 1:
        os.environ |= {
            "RANK": str(RANK),
            "LOCAL_RANK": str(RANK),
            "WORLD_SIZE": str(SIZE),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(PORT),
        }
    if FAULT is not None and FAULT[0] == RANK:
        _inject(*FAULT[1:])
    sys.argv = ["build_cache", *ARGUMENTS]
    run_job(build_cache.main)


def _inject(batch: int, what: str) -> None:
    """Let this rank fail at one of its batches."""
    plain, calls = vectors.encode_all, [0]

    def failing(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == batch:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise (
                OSError(errno.ENOSPC, "No space left on device")
                if what == "disk"
                else EncoderError("its weights are damaged")
            )
        return plain(*arguments, **keywords)

    vectors.encode_all = failing


if __name__ == "__main__":
    main()
