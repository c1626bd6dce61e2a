"""One trainer at a time: the lock on a run folder, which dies with the process that holds it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from embedcache.errors import BusyRunError, RunError
from embedcache.files import write_atomically
from fusionnet.runfolder.listing import HOLDER, LOCK

WAIT_S = 10.0  # for a trainer that is about to end, before saying who it is


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it is not there.

    Raises BusyRunError naming the holder if the lock is not free in time, RunError where nothing
    can be written.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT_S)
        _sign(folder)
    except filelock.Timeout:
        raise BusyRunError(
            f"{folder} is being trained in by {_holder(folder)}; wait for that, or choose another"
            " folder with --set run.dir=..."
        ) from None
    except OSError as error:
        lock.release()
        raise RunError(
            f"run.dir {folder} cannot be written: {error}; choose another with --set run.dir=..."
        ) from None
    try:
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _sign(folder: Path) -> None:
    """Say who trains."""
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(folder / HOLDER, json.dumps(who).encode())


def _holder(folder: Path) -> str:
    try:
        who = json.loads((folder / HOLDER).read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "another process"
