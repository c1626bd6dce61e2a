"""The system's errors have one form, whatever library met them, and say what to do."""

import errno
import os
import resource
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest
import torch

from embedcache.errors import TableError
from embedcache.files import atomic_write
from embedcache.system import check_handles, explained, is_explained, naming, system_error

FULL = Path("/dev/full")  # every write to it finds no space
LARGE = 200_000


def write_plainly() -> None:
    with FULL.open("wb") as stream:
        stream.write(bytes(LARGE))


def save_by_torch() -> None:
    with FULL.open("wb") as stream:
        torch.save({"a": torch.zeros(LARGE)}, stream)


def save_by_polars() -> None:
    pl.DataFrame({"a": range(LARGE)}).write_csv(FULL)


def quote_as_safetensors_does() -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "write", [write_plainly, save_by_torch, save_by_polars, quote_as_safetensors_does]
)
def test_a_full_disk_has_one_form(write: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, naming(tmp_path / "file"):
        write()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    said = explained(raised.value)
    assert said.startswith(f"{tmp_path / 'file'}: No space left on device (")
    assert said.endswith(" MB free); free some space, or choose a place elsewhere")


def test_what_may_not_be_read_is_told_from_what_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    refused = PermissionError(errno.EACCES, "Permission denied", str(file))
    assert explained(refused).endswith(
        "choose a place where this user may write, or change its permissions"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    assert explained(refused).endswith(
        "this user may not read it: change its permissions, or ask its owner"
    )
    below = PermissionError(errno.EACCES, "Permission denied", str(file / "below" / "it"))
    assert "may not read it" in explained(below)


def test_too_few_file_handles_name_the_command_that_allows_more() -> None:
    found = system_error(RuntimeError("[enforce fail at loop.cc:48] pipe: Too many open files"))
    assert found is not None
    assert is_explained(found)
    assert explained(found).endswith("allow more: ulimit -n 4096")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect of ours"),
        AssertionError("Permission denied to rows 3 to 4"),
        TableError("Permission denied is no category"),
        KeyboardInterrupt("Permission denied"),
        OSError("without a number"),
    ],
)
def test_what_the_system_did_not_say_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, naming(Path("file")):
        raise error
    assert raised.value is error


def test_handles_that_do_not_suffice_for_a_training_are_refused_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit, few in ((12, True), (31, True), (32, False), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        with pytest.raises(OSError, match="Too many") if few else nullcontext():
            check_handles()


def test_a_file_elsewhere_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, naming(tmp_path / "inner" / "target"):
        (tmp_path / "source").read_bytes()
    assert raised.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO])
def test_a_refused_write_names_its_target_and_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as raised, atomic_write(target) as new:
        new.write_text("new")
    assert (raised.value.errno, raised.value.filename) == (number, str(target))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_no_folder_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "target"
    with pytest.raises(NotADirectoryError) as raised, atomic_write(target):
        pass
    assert raised.value.filename == str(target)


def test_what_rust_code_panics_at_is_read_and_other_ends_of_a_process_are_not() -> None:
    class PanicException(BaseException):  # as pyo3 names it
        pass

    text = 'Err value: Os { code: 24, message: "Too many open files" }'
    found = system_error(PanicException(text))
    assert found is not None
    assert found.errno == errno.EMFILE
    assert system_error(PanicException("index out of bounds")) is None
    assert system_error(KeyboardInterrupt(text)) is None
    assert system_error(SystemExit(text)) is None
