"""The folder of a cache: locked while a new one is built beside it, which takes its name by rename.

    cache.zarr             the published cache; only ever a complete one
    cache.zarr.lock        held by the one process that builds
    cache.zarr.partial/    builder.json  who builds
                           vectors/      embeddings so far, which survive a kill
                           store/        the new cache, complete once it has a root zarr.json
                           replaced/     the old cache, between the two renames that replace it

A kill leaves the old cache, or none, or (between the two renames) the old one in `replaced/` with
the new one complete in `store/`; `recover` puts it back. Nothing is ever deleted but what lies in
`.partial` under these names.
"""

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from embedcache.cache import manifest
from embedcache.cache.identity import Identity
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import (
    BusyCacheError,
    CacheError,
    CorruptCacheError,
    MissingCacheError,
    StaleCacheError,
    UserError,
)
from embedcache.files import sync, write_atomically
from embedcache.system import NO_SPACE, explained, is_closed

QUIET_S, MOST_LATE_S = 0.05, 5.0  # without, and with, writes of a build that has failed
WAIT_S = 10.0  # for another builder, before saying who it is


class CacheFolder:
    """A cache's path and what lies beside it; everything but `locked` is called with the lock."""

    def __init__(self, path: str | Path) -> None:
        """Take the path of a cache; a link is followed, so that all lies on one file system."""
        self.path = Path(os.path.realpath(path))
        self.lock = self.path.with_name(self.path.name + ".lock")
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.builder = self.partial / "builder.json"
        self.vectors = self.partial / "vectors"
        self.store = self.partial / "store"
        self.replaced = self.partial / "replaced"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock while a cache is built.

        A failed build keeps its embeddings, but not its store. Raises BusyCacheError naming the
        holder if the lock is not free in time, CacheError for a full disk or a forbidden folder.
        """
        with self._errors_named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.lock)
            try:
                lock.acquire(timeout=WAIT_S)
            except filelock.Timeout:
                raise BusyCacheError(
                    f"{self.path} is being built by {self._holder()}; wait for that, or give this"
                    " build another cache.path"
                ) from None
            try:
                self._sign()
                yield
            except UserError:
                self.discard_store()
                raise
            finally:
                self._leave()
                lock.release()

    def recover(self) -> None:
        """Put things in order after a builder that was killed."""
        if self.replaced.exists():
            if self.path.exists():
                shutil.rmtree(self.replaced)
            else:
                self.replaced.rename(self.path)
        if self.store.exists() and not (self.store / manifest.ROOT).exists():
            shutil.rmtree(self.store)

    def finished(self, identity: Identity) -> Cache | None:
        """Return the sound cache of this identity that a killed build left unpublished, if any."""
        try:
            found = open_cache(self.store)
            found.verify()
        except (MissingCacheError, CorruptCacheError, StaleCacheError):
            return None
        return found if found.identity == identity else None

    def discard_store(self) -> None:
        """Delete the new cache, keeping the embeddings.

        After an error zarr's threads may still be writing what was asked of them, into folders that
        are being deleted.
        """
        gone_since, deadline = math.inf, time.monotonic() + MOST_LATE_S
        while time.monotonic() < min(deadline, gone_since + QUIET_S):
            if self.store.exists():
                gone_since = math.inf
                shutil.rmtree(self.store, ignore_errors=True)
            gone_since = min(gone_since, time.monotonic())
            time.sleep(QUIET_S / 5)

    def publish(self) -> None:
        """Move the sealed store to its final name, the old cache out of it; then clean up."""
        if self.path.exists():
            self.path.rename(self.replaced)
        self.store.rename(self.path)
        sync(self.path.parent)
        self.clean_up()

    def clean_up(self) -> None:
        """Delete everything in the partial folder that a build put there."""
        for folder in (self.replaced, self.vectors, self.store):
            if folder.exists():
                shutil.rmtree(folder)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turn a full disk or a forbidden folder into a CacheError that says so."""
        try:
            yield
        except OSError as error:
            intact = "the cache that was there is intact"
            kept = intact if self.path.exists() else "nothing was published"
            if error.errno in NO_SPACE:
                self.discard_store()
                free = shutil.disk_usage(self.path.parent).free
                raise CacheError(
                    f"no space left for {self.path} ({free / 1e6:,.1f} MB free after cleaning up);"
                    f" {kept}. Free some space or set cache.path elsewhere, then run the same"
                    " command again: strings already encoded are kept"
                ) from error
            is_read = error.filename is not None and is_closed(Path(os.fsdecode(error.filename)))
            what = "" if is_read else f"cannot write {self.path}: "
            raise CacheError(f"{what}{explained(error)}; {kept}") from error

    def _sign(self) -> None:
        """Say who builds."""
        self.partial.mkdir(exist_ok=True)
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(self.builder, json.dumps(who).encode())

    def _leave(self) -> None:
        """Take the builder's name away, and the partial folder if it holds nothing of use."""
        self.builder.unlink(missing_ok=True)
        if self.partial.exists() and not any(self.partial.iterdir()):
            self.partial.rmdir()

    def _holder(self) -> str:
        try:
            who = json.loads(self.builder.read_bytes())
        except (FileNotFoundError, ValueError):
            return "another process"
        return f"process {who['pid']} on {who['host']} since {who['since']}"
