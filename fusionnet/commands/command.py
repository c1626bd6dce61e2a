"""What every command shares: exit codes, and the arguments of those that read a config.

Exit codes: 0 done, 1 our defect (traceback), 2 the user's input or the machine's
limits (message alone), 130 stopped by
Ctrl-C, 143 by SIGTERM.
"""

import argparse
import atexit
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from embedcache.errors import UserError
from embedcache.system import explained, is_explained, is_panic, system_error
from fusionnet.stopping import FURTHER, Stopped, listening


def run_job(main: Callable[[], None]) -> NoReturn:
    """Run a command's main and exit with its code; a UserError prints its message alone."""
    try:
        with listening(), _threads_left_to_owners():
            main()
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, end="\n" if stopped.text else "", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:  # who read what is printed is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except BaseException as error:  # a panic of polars is no Exception
        is_foreign = isinstance(error, OSError | RuntimeError | ImportError) or is_panic(error)
        found = system_error(error) if is_foreign else None
        if found is None or not is_explained(found):
            raise
        print(f"error: {explained(found)}. Then {FURTHER}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


@contextmanager
def _threads_left_to_owners() -> Iterator[None]:
    """Say nothing of the system's errors in a thread: who waits for it raises them, and says more.

    TensorBoard's writer on a full disk would print a traceback, and be asked what it was later.
    """
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is None or system_error(failed.exc_value) is None:
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def importing() -> Iterator[None]:
    """Import here what takes seconds, after the arguments were read and what is missing was said.

    Imports make a million objects that stay. The garbage collector neither walks them meanwhile nor
    later; without that it took a ninth of a start. At exit they are its own again, since nanobind,
    which Triton is made with, would call them leaks.
    """
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # once, or a process of many commands would keep garbage
            gc.freeze()
            atexit.register(gc.unfreeze)
        gc.enable()


def config_as_given(arguments: argparse.Namespace) -> str:
    """Return what `--config` and `--set` were given, for a command that a message advises."""
    sets = [f" --set {shlex.quote(each)}" for each in arguments.overrides]
    return shlex.quote(arguments.config) + "".join(sets)


def config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every configured command takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML file such as configs/stage1.yaml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one value, e.g. --set train.epochs=3",
    )
    # set by the deepspeed launcher; the environment is used instead
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser
