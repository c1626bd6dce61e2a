"""The atomic writer: whatever ends a write, the target is the old content or the new."""

import hashlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedcache.files import atomic_write, file_digest, write_atomically


def write(path: Path, content: str, is_folder: bool) -> None:
    """Write a file, or a folder with a file in it."""
    if is_folder:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text(content)
    else:
        path.write_text(content)


def content_of(path: Path) -> str:
    return (path / "inner" / "file" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_was_written_takes_the_place_of_what_was_there(
    tmp_path: Path, is_folder: bool
) -> None:
    target = tmp_path / "target"
    for content in ("old", "new"):
        with atomic_write(target) as partial:
            write(partial, content, is_folder)
            assert not target.exists() or content_of(target) == "old"
        assert content_of(target) == content
    assert list(tmp_path.iterdir()) == [target]


def write_half(target: Path, is_folder: bool, error: Callable[[], BaseException]) -> None:
    """Be stopped by an error in the middle of a write."""
    with atomic_write(target) as partial:
        write(partial, "half", is_folder)
        raise error()


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_alone(
    tmp_path: Path, is_folder: bool, error: type[BaseException]
) -> None:
    target = tmp_path / "target"
    write(target, "old", is_folder)
    with pytest.raises(error):
        write_half(target, is_folder, error)
    assert content_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def be_killed_while_writing(target: Path, is_folder: bool) -> None:
    """End a forked writer of `target` as kill -9 does, in the middle of its write."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with atomic_write(target) as partial:
                write(partial, "half", is_folder)
                os.write(writer, b".")
                signal.pause()
        finally:
            os._exit(1)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


@pytest.mark.slow
@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("was_folder", [False, True])
@pytest.mark.parametrize("name", ["target", "a [1]*", "\N{GREEK SMALL LETTER MU}" * 127])
def test_what_a_killed_writer_left_is_deleted_by_the_next(
    tmp_path: Path, is_folder: bool, was_folder: bool, name: str
) -> None:
    target = tmp_path / name
    be_killed_while_writing(target, was_folder)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    with atomic_write(target) as partial:
        write(partial, "new", is_folder)
    assert content_of(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_moved_aside_by_a_killed_writer_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(tmp_path / ".target.0123abc_.partial" / "old", "old", is_folder=True)
    with pytest.raises(OSError, match="stopped"):
        write_half(target, True, lambda: OSError("stopped"))
    assert content_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_folder", [False, True])
def test_two_writers_of_one_target_do_not_meet(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "target"
    with atomic_write(target) as first:
        write(first, "first", is_folder)
        with atomic_write(target) as second:
            write(second, "second", is_folder)
        assert content_of(target) == "second"
        assert content_of(first) == "first"
    assert content_of(target) == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_folder", [False, True])
def test_writers_in_one_folder_do_not_disturb_each_other(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "target"

    def write_often(number: int) -> None:
        for _ in range(60):
            with atomic_write(target) as partial:
                write(partial, f"of {number}", is_folder)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write_often, range(4))) == [None] * 4  # none fails
    assert content_of(target) in {f"of {number}" for number in range(4)}
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_to_a_folder_is_replaced_and_the_folder_is_left_alone(tmp_path: Path) -> None:
    folder, target = tmp_path / "folder", tmp_path / "target"
    write(folder, "somebody's", is_folder=True)
    target.symlink_to(folder)
    with atomic_write(target) as partial:
        write(partial, "new", is_folder=True)
    assert (content_of(target), content_of(folder)) == ("new", "somebody's")
    assert not target.is_symlink()
    assert set(tmp_path.iterdir()) == {folder, target}


def test_a_second_link_to_a_file_leaves_nothing_beside_it(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("content")
    for _ in range(2):  # renaming one link to a file to another does nothing
        with atomic_write(target) as partial:
            os.link(source, partial)
    assert target.samefile(source)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_others_named_alike_is_left_alone(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "target"
    others = [tmp_path / f"target{suffix}" for suffix in (".old", ".partial")]
    others += [tmp_path / ".target.b.0123abc_.partial"]  # of a target with a longer name
    write(target, "old", is_folder)
    for other in others:
        write(other, "somebody's", is_folder)
    with atomic_write(target) as partial:
        write(partial, "new", is_folder)
    assert content_of(target) == "new"
    assert all(content_of(other) == "somebody's" for other in others)
    assert set(tmp_path.iterdir()) == {target, *others}


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "old", is_folder=True)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_atomically(target, b"new")
    assert content_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_replaced_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write(target, "old", is_folder=True)

    def fail(path: Path, to: Path) -> Path:
        raise OSError("no more")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no more"), atomic_write(target) as partial:
        write(partial, "new", is_folder=True)
    assert content_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_everything_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, events = tmp_path / "target", []
    replace = Path.replace
    monkeypatch.setattr("embedcache.files.sync", lambda path: events.append(f"sync {path.name}"))
    monkeypatch.setattr(
        Path, "replace", lambda path, to: [events.append("replace"), replace(path, to)][1]
    )
    with atomic_write(target) as partial:
        write(partial, "new", is_folder=True)
    assert set(events[:3]) == {"sync new", "sync inner", "sync file"}
    assert events[3:] == ["replace", f"sync {tmp_path.name}"]


def test_a_digest_is_that_of_sha256sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.files.BLOCK_BYTES", 7)
    for content in (b"", b"1234567", b"more than two blocks"):
        write_atomically(tmp_path / "file", content)
        assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
