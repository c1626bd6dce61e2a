"""Run by test_ranks.py in one process per rank: the build job, with a fault on some rank."""

import errno
import json
import os
import signal
import sys
from typing import Any

from embedcache.build import vectors
from embedcache.errors import EncoderError
from fusionnet.commands import build_cache
from fusionnet.commands.command import run_job


def main() -> None:
    """Run the job; the first argument is a fault (rank, batch, what) in JSON, or null."""
    fault = json.loads(sys.argv.pop(1))
    if fault is not None and str(fault[0]) == os.environ.get("RANK"):
        _inject(*fault[1:])
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
