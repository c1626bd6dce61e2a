"""Files and folders that are there whole or not at all, and the digests of files."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

BLOCK_BYTES = 1 << 22
LARGE_BYTES = 1 << 31  # about two seconds of hashing


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a path for a file or folder that becomes `target` once it is written.

    A kill or an error leaves what was there before; what was written is on disk before it takes
    the name, so a power cut leaves the old content or the new. A folder cannot take the name of
    another in one step: the old one is moved into a new hidden folder (`.NAME.*.old`) first and
    deleted last. A file never replaces a folder: that is an IsADirectoryError.
    """
    partial, aside = target.with_name(f"{target.name}.partial"), None
    _remove(partial)  # of a writer that was killed
    try:
        yield partial
        for path in [partial, *partial.rglob("*")]:
            sync(path)
        if target.is_dir():
            aside = _moved_aside(target, partial)
        try:
            partial.replace(target)
        except OSError:
            if aside is not None:
                aside.rename(target)
                aside.parent.rmdir()
            raise
        sync(target.parent)
    finally:
        _remove(partial)
    if aside is not None:
        _remove(aside)
        aside.parent.rmdir()


def _moved_aside(target: Path, partial: Path) -> Path:
    """Return where a folder was moved that another one replaces: a name that nobody else has."""
    if not partial.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "it is a folder, which a file must not replace", target
        )
    hidden = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)
    return target.rename(Path(hidden) / target.name)


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


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
