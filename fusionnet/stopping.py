"""How a command ends when it is told to: by SIGTERM, by Ctrl-C, or by the end of its launcher.

Being told is an exception, `Stopped`, which leaves nothing half written, since everything here
takes its name when it is whole. A training goes on to the end of its optimizer step or batch of
validation first: within `at_checkpoints` being told is a question that it asks, `is_asked`.

Python calls a signal's handler between two of its own instructions, which a process that waits in
C++ for a dead rank never reaches. So a thread reads the signals as well, from a pipe that is
written to at once. A second one ends the process there and then. Launchers pass on what reached
their ranks already (Ctrl-C goes to all processes of a terminal, and `deepspeed` ends its ranks when
the first one has ended), so within REPEATED_S of the first that is no second one.

The same thread sees when a launcher is gone (`launchers`): then nobody would wait for the ranks,
and who starts the run anew would meet them. They are told to stop, as by SIGTERM, and end
ORPHANED_S later in any case.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fusionnet.launchers import is_launched, launchers_above

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 1.0  # between two looks at the launchers
REPEATED_S = 3.0
ORPHANED_S = 10.0
FURTHER = "run the same command again, a training with --resume; what was finished before is whole"


class Stopped(KeyboardInterrupt):
    """The command was told to stop, and has; its text is empty where another rank speaks."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.text, self.exit_code = text, exit_code


class _Asked:
    """What this process was told; signals belong to a process, so there is one."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.reason = ""
        self.is_held = False
        self.held_until = ""

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; raise Stopped unless that waits for a checkpoint."""
        if self.signum is not None:
            return  # the thread knows better whether this is a second one
        self.signum = signum
        self.reason = self.reason or signal.Signals(signum).name
        if not self.is_held:
            raise stopped(FURTHER)


_asked = _Asked()


def is_asked() -> bool:
    """Return whether this process was told to stop."""
    return _asked.signum is not None


def stopped(where: str) -> Stopped:
    """Return the exception that ends the command; `where` says what is done and how to go on."""
    signum = _asked.signum or signal.SIGTERM  # as another rank was told
    by = f"by {_asked.reason}" if is_asked() else "with another rank"
    return Stopped(f"stopped {by}; {where}" if _is_first_rank() else "", 128 + signum)


@contextmanager
def at_checkpoints(until: str = "this optimizer step or batch") -> Iterator[None]:
    """Let being told to stop wait until somebody asks; who never asks comes to the end.

    `until` says what is finished first.
    """
    _asked.is_held, _asked.held_until = True, until
    try:
        yield
    finally:
        _asked.is_held = False


@contextmanager
def listening() -> Iterator[None]:
    """Raise Stopped in here when the process is told to stop; in the main thread alone.

    A signal that this process was started to ignore (nohup, a shell's background) stays ignored.
    """
    global _asked
    _asked = _Asked()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    heard = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, _asked.handle) for each in heard}
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read_end, _asked), name="signals", daemon=True)
    watch.start()
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:  # of a handler that took ours away, as polars' does while it reads
        _asked.signum = signal.SIGINT
        _asked.reason = _asked.reason or signal.SIGINT.name
        raise stopped(FURTHER) from None
    finally:
        signal.set_wakeup_fd(wakeup)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(write_end)  # which ends the thread
        _asked = _Asked()


def _watch(read_end: int, asked: _Asked) -> None:
    """Read signals and look at the launchers until the pipe is closed."""
    launchers = launchers_above(os.environ)
    first, end = None, None  # readings of the clock
    while True:
        ready, _, _ = select.select([read_end], [], [], LOOK_S if launchers else None)
        now = time.monotonic()
        if ready:
            read = os.read(read_end, 64)
            if not read:
                os.close(read_end)
                return
            signums = [number for number in read if number in SIGNALS]
            if first is None and signums:
                first = now
                _say(asked, asked.reason or signal.Signals(signums[0]).name)
            elif first is not None and signums and now - first > _repeated_s():
                os._exit(128 + signums[-1])
        gone = [each for each in launchers if not each.is_alive]
        if end is None and gone:
            end = now + ORPHANED_S
            if first is None:
                name, number = gone[0].name, gone[0].process.pid
                asked.reason = f"the end of its launcher ({name}, process {number})"
                os.kill(os.getpid(), signal.SIGTERM)
        if end is not None and now > end:
            os._exit(128 + signal.SIGTERM)


def _say(asked: _Asked, reason: str) -> None:
    """Say what is waited for, on a line of its own; whoever read it may be gone."""
    if asked.is_held and _is_first_rank():
        start = "\n" if sys.stderr.isatty() else ""  # below a progress bar
        when = f"after {asked.held_until}, at a second signal at once"
        text = f"{start}{reason}: it stops {when}\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())


def _repeated_s() -> float:
    return REPEATED_S if is_launched(os.environ) else 0.0


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
