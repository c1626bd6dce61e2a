"""Commands in forks of a process that has imported everything, under conditions set from outside.

Importing the training stack takes 6 to 8 s, a fork of a process that has done so some milliseconds.
A fork calls a command's `main` as its module does, with a process group, two streams, a folder and
an environment of its own. It is killed before its n-th file operation by an audit hook: Python says
every open, rename, link, removal and folder beforehand. (Polars writes tables without saying so.)
"""

import atexit
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from fusionnet.commands.command import run_job

LIMIT_S = 180.0  # a command that runs longer hangs
LOOK_S = 0.004
MOST_HANDLES = 1024
PR_SET_PDEATHSIG, CAP_DAC_OVERRIDE, CAPABILITY_VERSION = 1, 1, 0x20080522
CHANGES = {
    *("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir"),
    *("os.truncate", "os.chmod", "os.utime"),
}
IN_FOLDER = {"os.remove", "os.rmdir", "os.mkdir", "os.chmod"}  # last, the handle of one, or -1
FOR_ALL = {
    "EMBEDCACHE_VECTORS": "off",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLARS_MAX_THREADS": "2",
}


@dataclass(frozen=True)
class Conditions:
    """What a command meets that it does not expect."""

    kill_before: int | None = None  # SIGKILL to its process group before this file operation
    trace: Path | None = None  # where the number of its file operations is written
    limits: tuple[tuple[int, int], ...] = ()  # of the kernel: resource, most
    forbidden: bool = False  # root may write only where its own permissions say so, as others
    environment: Mapping[str, str] = field(default_factory=dict)
    plant: Callable[[], None] | None = None  # called before it, to plant a fault of ours in it


NORMAL = Conditions()


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code (negative: the signal; None: it hung), and what it printed."""

    command: str
    code: int | None
    out: str
    err: str


class Running:
    """A command that runs, alone or as the ranks of one process group."""

    def __init__(self, command: str, pids: list[int], streams: tuple[int, int]) -> None:
        self.command, self.pids, self._streams = command, pids, streams
        self._texts = (bytearray(), bytearray())
        self._ended: dict[int, int] = {}

    @property
    def codes(self) -> list[int | None]:
        """The exit code of each rank that has ended."""
        return [self._ended.get(pid) for pid in self.pids]

    def _read(self) -> None:
        """Take what was printed, so that the pipes are never full."""
        for stream, text in zip(self._streams, self._texts, strict=True):
            with suppress(BlockingIOError):
                while more := os.read(stream, 1 << 16):
                    text += more

    def ended(self) -> bool:
        """Return whether all its processes have ended."""
        self._read()
        for pid in self.pids:
            if pid not in self._ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self._ended[pid] = os.waitstatus_to_exitcode(status)
        return len(self._ended) == len(self.pids)

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to the process group, or to one of its processes."""
        if not self.ended():
            if pid is None:
                os.killpg(self.pids[0], number)
            elif pid not in self._ended:
                os.kill(pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> Done:
        """Return how it ended: by the code of the first rank that failed."""
        end = time.monotonic() + limit_s
        while not self.ended() and time.monotonic() < end:
            time.sleep(LOOK_S)
        hung = not self.ended()
        if hung:
            for pid in self.pids:
                if pid not in self._ended:
                    os.kill(pid, signal.SIGKILL)
                    self._ended[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = next((code for code in self._ended.values() if code), 0)
        self._read()
        for stream in self._streams:
            os.close(stream)
        texts = [text.decode(errors="replace") for text in self._texts]
        return Done(self.command, None if hung else code, *texts)


def start(
    folder: Path,
    words: Sequence[str],
    conditions: Conditions = NORMAL,
    ranks: Sequence[Mapping[str, str]] = ({},),
) -> Running:
    """Start a command (its module's name in `fusionnet.commands`, then its arguments) in a folder.

    `ranks` holds what a launcher would put into each rank's environment. Commands print into pipes,
    which no limit on files concerns.
    """
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    for stream in (out, err):
        os.set_blocking(stream, False)
    pids: list[int] = []
    for environment in ranks:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _become(folder, (to_out, to_err), words, conditions, environment, (*pids, 0)[0])
        os.setpgid(pid, pids[0] if pids else pid)  # here too, so that it is so when this returns
        pids.append(pid)
    for stream in (to_out, to_err):
        os.close(stream)
    return Running(" ".join(words), pids, (out, err))


def _become(
    folder: Path,
    streams: tuple[int, int],
    words: Sequence[str],
    conditions: Conditions,
    environment: Mapping[str, str],
    group: int,
) -> NoReturn:
    """Be the command, in the fork."""
    code = 1
    try:
        os.setpgid(0, group)
        die_with_parent()
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        os.closerange(3, MOST_HANDLES)  # ours, such as the pipes of other commands
        os.chdir(folder)
        os.environ.update({**FOR_ALL, **conditions.environment, **environment})
        torch.set_num_threads(1)
        _meet(conditions, folder)
        sys.argv = [f"python -m jobs.{words[0]}", *words[1:]]
        code = _call(words[0])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_fork(work: Callable[[], Any]) -> Any:
    """Return what some work of ours returns as JSON, done in a fork.

    A process that computed has threads, and may not be forked any more.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:  # noqa: BLE001 - told here, and missed by the parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the work in the fork failed: see the traceback above"
    return json.loads(text)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(name: str) -> int:
    """Run a command as its module does, to the end of an interpreter's life; return its code."""
    try:
        run_job(import_module(f"fusionnet.commands.{name}").main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what an interpreter prints at its end
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def _meet(conditions: Conditions, folder: Path) -> None:
    """Bring about what the command does not expect."""
    for kind, most in conditions.limits:
        resource.setrlimit(kind, (most, most))
    if conditions.forbidden:
        _give_up_override()
    if conditions.kill_before is not None or conditions.trace is not None:
        _watch_files(conditions, str(folder))
    if conditions.plant is not None:
        conditions.plant()


def _give_up_override() -> None:
    """Give up root's right to write whatever the permissions say; others never had it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)  # of this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and of the upper bits
    codes = [libc.capget(header, data)]
    for word in (0, 1):
        data[word] &= ~(1 << CAP_DAC_OVERRIDE)
    codes.append(libc.capset(header, data))
    assert not any(codes), os.strerror(ctypes.get_errno())


def _watch_files(conditions: Conditions, folder: str) -> None:
    """Count operations on files of the folder; stop at one of them, or write what there were."""
    seen: list[str] = []
    trace = conditions.trace

    def met(event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes(event, arguments, folder):
            return
        if len(seen) == conditions.kill_before:
            os.killpg(0, signal.SIGKILL)
        names = (
            os.path.relpath(os.fsdecode(word), folder)
            for word in arguments[:2]
            if isinstance(word, str | bytes | os.PathLike)
        )
        seen.append(f"{event} {' '.join(names)}")

    sys.addaudithook(met)
    if trace is not None:
        atexit.register(lambda: trace.write_text("\n".join(seen)))


def _changes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Return whether an audit event is a change of a file below the folder."""
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or flags & os.O_ACCMODE == os.O_RDONLY:
            return False
    elif event not in CHANGES:
        return False
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a file that is open, by its handle
    inside = arguments[-1] if event in IN_FOLDER and isinstance(arguments[-1], int) else -1
    start = os.getcwd() if inside < 0 else os.readlink(f"/proc/self/fd/{inside}")
    return os.path.normpath(os.path.join(start, os.fsdecode(path))).startswith(folder)
