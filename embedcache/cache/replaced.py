"""Whether a cache that is being read is still the one that was opened.

A file's digest is checked once, so of another cache's files those of the same size would be read. A
build replaces the whole folder: as long as the root's file is the one that was opened, so was all
that was read before.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from embedcache.cache import manifest
from embedcache.errors import CorruptCacheError, MissingCacheError, StaleCacheError


class Unreplaced:
    """A context of reading, which raises StaleCacheError if another cache took the place."""

    def __init__(self, path: Path, files: Mapping[str, Any], short: str) -> None:
        """`files` are the root's, `short` is what a message calls the cache."""
        self._path, self._files, self._short = path, files, short
        self._opened = self._stamp()

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look at the root, where reading ended or found what is not there or not right."""
        if error is not None and not isinstance(error, CorruptCacheError):
            return
        stamp = self._stamp()
        if stamp == self._opened:
            return
        try:
            files = manifest.read_root(self._path)["files"]
        except (MissingCacheError, CorruptCacheError):
            files = None
        if files != self._files:
            raise StaleCacheError(
                f"{self._path} was replaced or changed while it was being read; run the same"
                " command again on what is there now, or put back the cache that was there"
                f" ({self._short}); a training that goes on with --resume needs that one"
            ) from None
        self._opened = stamp  # a copy of the same

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return what tells the root's file from another: its number, size and time of change."""
        try:
            status = (self._path / manifest.ROOT).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns
