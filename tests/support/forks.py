"""Processes that are forked from one warm server instead of started anew.

Importing the training stack takes 6 to 8 s of CPU, a fork of a process that has imported it some
milliseconds. A fork runs a script as `python script` would (`sys.argv`, `sys.path[0]`, `__main__`),
in the folder and environment that this process is in, with an exit code and two streams of its own.
It is killed as any process is, and inherits no threads, since the server computes nothing. What it
shares with its siblings is the seed of Python's hashes: a test of equal bits should start one of
its sides by a fresh interpreter.
"""

import atexit
import itertools
import multiprocessing
import os
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

SUPPORT = Path(__file__).resolve().parent
REPOSITORY = SUPPORT.parents[1]
FOR_ALL = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "EMBEDCACHE_VECTORS": "off"}
LAUNCHERS = {  # and their options for two ranks
    "deepspeed": ("--num_accelerators", "2", "--master_port"),
    "torchrun": ("--nproc-per-node", "2", "--master-port"),
}


class Done(NamedTuple):
    """How a process ended: its exit code (negative: the signal) and what it printed."""

    code: int
    out: str
    err: str


class Fork:
    """A process that runs; `wait` for it or `kill` it."""

    def __init__(self, process: Any, out: Path, err: Path) -> None:
        self.process, self.out, self.err = process, out, err

    @property
    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return bool(self.process.is_alive())

    def kill(self) -> Done:
        """End the process as kill -9 does."""
        self.process.kill()
        return self.wait()

    def wait(self, timeout_s: float = 200) -> Done:
        """Return how the process ended; one that hangs is killed and fails the test."""
        self.process.join(timeout_s)
        hangs = self.is_alive
        if hangs:
            self.process.kill()
            self.process.join()
        done = Done(self.process.exitcode, self.out.read_text(), self.err.read_text())
        assert not hangs, f"still running after {timeout_s} s: {done}"
        return done


class Forks:
    """The server, which starts with the first fork and ends with the session."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["warm"])

    def call(
        self, function: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None
    ) -> Fork:
        """Start a process that calls a function, which it imports by name."""
        number = next(self._numbers)
        out, err = self._folder / f"{number}.out", self._folder / f"{number}.err"
        for file in (out, err):  # a process may be killed before it opens them
            file.touch()
        # without what a test of this process has joined
        inherited = {name: os.environ[name] for name in os.environ.keys() - announced("", 0, 1, 0)}
        place = _Place(os.getcwd(), {**inherited, **FOR_ALL, **(env or {})}, out, err)
        process = self._context.Process(target=_run, args=(place, partial(function, *arguments)))
        with pytest.MonkeyPatch.context() as patch:  # a server that starts now finds this checkout
            patch.setenv("PYTHONPATH", search_path(SUPPORT, REPOSITORY))
            for name, value in FOR_ALL.items():
                patch.setenv(name, value)
            process.start()
        return Fork(process, out, err)

    def start(self, script: Path, *words: object, env: Mapping[str, str] | None = None) -> Fork:
        """Start a process that does what `python script words` does."""
        return self.call(_run_script, str(script), [str(word) for word in words], env=env)

    def run(
        self, script: Path, *words: object, env: Mapping[str, str] | None = None, code: int = 0
    ) -> Done:
        """Return how `python script words` ended; another exit code than `code` fails the test."""
        done = self.start(script, *words, env=env).wait()
        assert done.code == code, f"exit code {done.code}\n{done.out}\n{done.err}"
        return done

    def launch(self, launcher: str, *words: object) -> Fork:
        """Start what `launcher words` does with two ranks; they are fresh interpreters, the
        launcher is a fork.
        """
        program = Path(sys.executable).with_name(launcher)
        return self.start(program, *LAUNCHERS[launcher], free_port(), *words)

    def start_ranks(
        self, script: Path, size: int, *words: object, launcher: str = "torchrun"
    ) -> list[Fork]:
        """Start as many ranks of a script, with what a launcher puts into their environment."""
        port = free_port()
        return [
            self.start(script, *words, env=announced(launcher, rank, size, port))
            for rank in range(size)
        ]

    def run_ranks(
        self, script: Path, size: int, *words: object, launcher: str = "torchrun"
    ) -> list[Done]:
        """Return what each rank of a script printed; none may fail."""
        ranks = self.start_ranks(script, size, *words, launcher=launcher)
        done = [rank.wait() for rank in ranks]
        assert all(rank.code == 0 for rank in done), "\n".join(map(str, done))
        return done


def search_path(*folders: Path) -> str:
    """Return a PYTHONPATH of these folders before those that are on it: packages may come that way
    alone.
    """
    return os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("PYTHONPATH"))))


def announced(launcher: str, rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun, or srun on one node, puts into a rank's environment."""
    if launcher == "srun":
        return {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(size),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_TASKS_PER_NODE": str(size),
            "SLURM_JOB_ID": str(port),  # of which the port is made
        }
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def wait_until(condition: Callable[[], bool], fork: Fork, timeout_s: float = 200) -> None:
    """Wait until something is so while a process runs; if it ends first, the test fails."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert fork.is_alive, fork.wait()
        assert time.monotonic() < end, f"not so after {timeout_s} s"
        time.sleep(0.002)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Place(NamedTuple):
    """What a process is given beside its task."""

    folder: str
    environment: dict[str, str]
    out: Path
    err: Path


def _run(place: _Place, task: Callable[[], Any]) -> None:
    """Run the task in the fork, in its own folder and environment and with its own streams."""
    assert "warm" in sys.modules, "the server did not import the training stack"
    for file, number in ((place.out, 1), (place.err, 2)):
        stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(place.folder)
    os.environ.clear()
    os.environ.update(place.environment)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        task()
    finally:  # as an interpreter ends: threads first, since zarr's wait for what it closes at exit
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def _run_script(script: str, words: list[str]) -> None:
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
