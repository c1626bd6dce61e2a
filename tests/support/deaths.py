"""Kills at a chosen file operation: a fork of this process does some work until it is to change its
nth file, and dies there as kill -9 does.
"""

import io
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

CHANGES = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "write")


def run_until(work: Callable[[], None], number: int) -> bool:
    """Do the work in a fork that dies before its file operation `number`, counted from 0.

    Returns whether it died there; else it did all of its work. A fork that raises is an error.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _die_at(number)
            work()
            os._exit(0)
        finally:  # an error: this process is not the one that pytest started
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the fork ended with {code}"
    return code != 0


def _die_at(number: int) -> None:
    """Let this process die before it changes a file for the nth time; a write is half done."""
    done = 0

    def dying(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            if name == "open" and not set(arguments[1] if arguments[1:] else "") & set("wax+"):
                return operation(*arguments, **named)
            done += 1
            if done > number:
                if name == "write":
                    operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counted

    for name in CHANGES:
        setattr(os, name, dying(name, getattr(os, name)))
    io.open = dying("open", io.open)
