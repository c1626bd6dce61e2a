"""One trainer a folder: the second is told who trains, and a dead one is in nobody's way."""

import os
import signal
from pathlib import Path

import pytest

from embedcache.errors import BusyRunError, RunError
from fusionnet.runfolder import lock
from fusionnet.runfolder.lock import locked


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.0)


def hold(folder: Path) -> int:
    """Return a process that holds a folder's lock until it is killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(folder):
            os.write(write, b"held")
            signal.pause()
            os._exit(0)
    assert os.read(read, 4) == b"held"
    for end in (read, write):
        os.close(end)
    return pid


def test_the_second_is_told_who_trains_and_a_dead_holder_is_in_nobodys_way(tmp_path: Path) -> None:
    pid = hold(tmp_path / "new" / "run")
    with (
        pytest.raises(BusyRunError, match=rf"being trained in by process {pid} on .* since 20"),
        locked(tmp_path / "new" / "run"),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(tmp_path / "new" / "run"):
        pass
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == [lock.LOCK]


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff"])
def test_a_holder_of_whom_nothing_is_known_is_another_process(
    content: bytes | None, tmp_path: Path
) -> None:
    with locked(tmp_path):
        (tmp_path / lock.HOLDER).unlink()
        if content is not None:
            (tmp_path / lock.HOLDER).write_bytes(content)
        with pytest.raises(BusyRunError, match="by another process"), locked(tmp_path):
            pass


def test_an_error_of_the_training_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training"), locked(tmp_path):
        raise ValueError("training")
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=r"run\.dir .* cannot be written"), locked(folder):
            pass
