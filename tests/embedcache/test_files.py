"""The atomic writer: whatever ends a write, the target is the old content or the new."""

import hashlib
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


def write_half(target: Path, is_folder: bool, error: type[BaseException]) -> None:
    """Be stopped by an error in the middle of a write."""
    with atomic_write(target) as partial:
        write(partial, "half", is_folder)
        raise error


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


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("was_folder", [False, True])
def test_what_a_killed_writer_left_is_overwritten(
    tmp_path: Path, is_folder: bool, was_folder: bool
) -> None:
    target = tmp_path / "target"
    write(tmp_path / "target.partial", "half", was_folder)
    with atomic_write(target) as partial:
        write(partial, "new", is_folder)
    assert content_of(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_others_named_alike_is_left_alone(tmp_path: Path, is_folder: bool) -> None:
    target, other = tmp_path / "target", tmp_path / "target.old"
    write(target, "old", is_folder)
    write(other, "somebody's", is_folder)
    with atomic_write(target) as partial:
        write(partial, "new", is_folder)
    assert content_of(target) == "new"
    assert content_of(other) == "somebody's"
    assert set(tmp_path.iterdir()) == {target, other}


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
    assert set(events[:3]) == {"sync target.partial", "sync inner", "sync file"}
    assert events[3:] == ["replace", f"sync {tmp_path.name}"]


def test_a_digest_is_that_of_sha256sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.files.BLOCK_BYTES", 7)
    for content in (b"", b"1234567", b"more than two blocks"):
        write_atomically(tmp_path / "file", content)
        assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
