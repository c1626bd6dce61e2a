"""Files and folders that are there whole or not at all, and the digests of files."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
from tqdm import tqdm

from embedcache.system import naming

BLOCK_BYTES = 1 << 22
LARGE_BYTES = 1 << 31  # about two seconds of hashing
LOCK = "lock"  # in the folder of a writer
LONGEST_PREFIX_BYTES = 200  # of a target's name in that folder's, for file systems that take 255


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a path for a file or folder that becomes `target` once it is written.

    A kill or an error leaves what was there before; what was written is on disk before it takes
    the name, so a power cut leaves the old content or the new. A folder cannot take the name of
    another in one step: the old one is moved aside first and deleted last; what a kill between the
    two leaves is put back by the next writer. A file never replaces a folder: that is an
    IsADirectoryError. Two writers of one target do not meet: the last to end is what stays. A disk
    that is full, read-only or forbidden is an OSError with its number that names `target`, whatever
    library met it.
    """
    with naming(target), _workplace(target) as place:
        partial, aside = place / "new", place / "old"
        yield partial
        for path in [partial, *partial.rglob("*")]:
            sync(path)
        if target.is_dir() and not partial.is_dir():
            raise IsADirectoryError(
                errno.EISDIR, "it is a folder, which a file must not replace", target
            )
        while not _takes_the_name(partial, target, aside):
            _remove(aside)  # what was there before the other writer's
        sync(target.parent)


def _takes_the_name(partial: Path, target: Path, aside: Path) -> bool:
    """Rename `partial` to `target`, from where a folder is moved aside; put that back on an error.

    Returns False where another writer's folder took the name between the two.
    """
    with suppress(FileNotFoundError):  # another writer moved it
        if target.is_dir():
            target.rename(aside)
    try:
        partial.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if aside.exists():
            aside.rename(target)
        raise
    return True


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `target`, this writer's own, locked as long as it lives.

    Those of writers that were killed are deleted.
    """
    clean_up_after_killed(target)
    place, lock = _new_workplace(target)
    try:
        yield place
    finally:
        _delete(place)
        lock.release()


def clean_up_after_killed(target: Path) -> None:
    """Delete the workplaces of `target`'s writers that were killed, putting back what they moved.

    The locks of these are free.
    """
    for left in _left_by_the_killed(target):
        if (left / "old").exists() and not target.exists():
            (left / "old").rename(target)
        _delete(left)


def _delete(place: Path) -> None:
    """Delete a workplace whose lock this process holds, the lock last.

    From then on another writer may take it for one that was left: the two then delete it together,
    or, where its own writer was only about to lock it, what is new in it stays.
    """
    for path in place.iterdir():
        if path.name != LOCK:
            _remove(path)
    shutil.rmtree(place, ignore_errors=True)


def _remove(path: Path) -> None:
    """Delete a file, a folder or a link, not what a link leads to; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_workplace(name: str, target_name: str) -> bool:
    """Return whether a folder of this name is one in which a writer of `target_name` works."""
    prefix, suffix = _around(target_name)
    # as mkdtemp draws
    return re.fullmatch(f"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(suffix)}", name) is not None


def _around(target_name: str) -> tuple[str, str]:
    """Return the beginning and the end of the names of a target's workplaces."""
    name = os.fsencode(target_name)[:LONGEST_PREFIX_BYTES].decode(errors="ignore")
    return f".{name}.", ".partial"


def _new_workplace(target: Path) -> tuple[Path, filelock.BaseFileLock]:
    """Return a new workplace and the lock on it, which this process holds."""
    prefix, suffix = _around(target.name)
    while True:
        place = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=target.parent))
        lock = filelock.FileLock(place / LOCK)
        # another writer took it for one that was left; filelock makes a folder that is gone
        with suppress(FileNotFoundError, FileExistsError):
            lock.acquire()
            if place.is_dir():
                return place, lock
            lock.release()


def _left_by_the_killed(target: Path) -> Iterator[Path]:
    """Yield the workplaces of writers that are no more, each locked while it is looked at."""
    for path in target.parent.iterdir():
        if is_workplace(path.name, target.name) and path.is_dir():
            # of another user, or of a writer that is alive: an OSError (Timeout is one)
            with suppress(OSError), filelock.FileLock(path / LOCK, timeout=0):
                yield path


def write_atomically(file: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_bytes(content)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(file: Path) -> str:
    """Return the sha256 of a file as `sha256sum` prints it, with a progress bar for a large one."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    bar = tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"hashing {file.name}",
        disable=None if size > LARGE_BYTES else True,
    )
    # not hashlib.file_digest: it reads into a buffer of its own, which tqdm.wrapattr cannot count
    with file.open("rb") as stream, bar:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
