"""Files that are there whole or not at all, and their digests."""

import hashlib
import os
from pathlib import Path

from tqdm import tqdm

BLOCK_BYTES = 1 << 22
LARGE_BYTES = 1 << 31  # about two seconds of hashing


def write_atomically(file: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    draft = file.with_name(file.name + ".draft")
    with draft.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(file: Path) -> None:
    """Make a file's content survive a power cut."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def file_digest(file: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    bar = tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"hashing {file.name}",
        disable=None if size > LARGE_BYTES else True,
    )
    with file.open("rb") as stream, bar:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
