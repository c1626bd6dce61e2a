"""Where errors end: a message and exit code 2 for what users and machines cause, else a
traceback.
"""

import errno
import os
import threading

import pytest

from fusionnet.commands.command import run_job


def ended(main: object) -> int:
    """Return the exit code of a command."""
    with pytest.raises(SystemExit) as raised:
        run_job(main)  # type: ignore[arg-type]
    assert isinstance(raised.value.code, int)
    return raised.value.code


def raising(error: BaseException) -> object:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), "error: /a/b: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "where this user may write"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (RuntimeError("gloo: pipe: Too many open files"), "ulimit -n 4096"),
        (ImportError("libtorch.so: Too many open files"), "ulimit -n 4096"),
    ],
)
def test_the_machines_limits_are_messages(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error)) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Then run the same command again" in printed
    assert printed.count("\n") == 1


def test_ctrl_c_that_a_library_has_caught_stops_as_ours_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("stopped by SIGINT; run the same command again")


@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), ConnectionResetError(errno.ECONNRESET, "reset")]
)
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_job(raising(error))  # type: ignore[arg-type]


def test_a_thread_leaves_the_systems_errors_to_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: seen.append(failed.exc_value))
    defect = ValueError("a defect")

    def main() -> None:
        for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), defect):
            thread = threading.Thread(target=raising(error))  # type: ignore[arg-type]
            thread.start()
            thread.join()

    assert ended(main) == 0
    assert seen == [defect]
