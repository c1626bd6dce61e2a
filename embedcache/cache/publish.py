"""Where a cache is built, and how it is published: under a lock, beside its final name, by rename.

    cache.zarr             the published cache; only ever a complete one
    cache.zarr.lock        held by the one process that builds
    cache.zarr.partial/    builder.json  who builds
                           vectors/      embeddings so far; they survive a kill (see `vectors`)
                           store/        the new cache, complete once it has a root zarr.json
                           replaced/     the old cache, between the two renames that replace it

A kill leaves the old cache, or none, or (between the two renames) the old one in `replaced/` with
the new one complete in `store/`; `recover` puts it back. Nothing is ever deleted but what lies in
`.partial` under these names.
"""

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from embedcache.cache import manifest
from embedcache.errors import BusyCacheError, CacheError, UserError
from embedcache.files import sync, write_atomically

WAIT_S = 10.0  # for another builder, before saying who it is
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Places:
    """The paths around one cache."""

    path: Path

    @staticmethod
    def of(path: str | Path) -> "Places":
        """Return the places of a cache; a link is followed, so that all of them share one file
        system.
        """
        return Places(Path(os.path.realpath(path)))

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.path.with_name(self.path.name + ".lock")

    @property
    def partial(self) -> Path:
        """The folder of an unfinished build."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def builder(self) -> Path:
        """Who builds."""
        return self.partial / "builder.json"

    @property
    def vectors(self) -> Path:
        """Embeddings so far."""
        return self.partial / "vectors"

    @property
    def store(self) -> Path:
        """The new cache."""
        return self.partial / "store"

    @property
    def replaced(self) -> Path:
        """The old cache while it is being replaced."""
        return self.partial / "replaced"


@contextmanager
def builder_lock(places: Places) -> Iterator[None]:
    """Hold the lock of a cache while building it; raises BusyCacheError naming the holder if it is
    not free in time.
    """
    with errors_named(places):
        places.path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(places.lock)
        try:
            lock.acquire(timeout=WAIT_S)
        except filelock.Timeout:
            raise BusyCacheError(
                f"{places.path} is being built by {_holder(places)}; wait for that, or give this"
                " build another cache.path"
            ) from None
        try:
            places.partial.mkdir(exist_ok=True)
            who = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_atomically(places.builder, json.dumps(who).encode())
            yield
        except UserError:
            discard_store(places)
            raise
        finally:
            _leave(places)
            lock.release()


@contextmanager
def errors_named(places: Places) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a CacheError that says so; the published cache is
    untouched by either.
    """
    try:
        yield
    except OSError as error:
        kept = (
            "the cache that was there is intact"
            if places.path.exists()
            else "nothing was published"
        )
        if error.errno in NO_SPACE:
            discard_store(places)
            free = shutil.disk_usage(places.path.parent).free
            raise CacheError(
                f"no space left for {places.path} ({free / 1e6:,.1f} MB free after cleaning up);"
                f" {kept}. Free some space or set cache.path elsewhere, then run the same command"
                " again: strings already encoded are kept"
            ) from error
        raise CacheError(f"cannot write {places.path}: {error}; {kept}") from error


def recover(places: Places) -> None:
    """Put things in order after a builder that was killed; call with the lock held."""
    if places.replaced.exists():
        if places.path.exists():
            shutil.rmtree(places.replaced)
        else:
            places.replaced.rename(places.path)
    if places.store.exists() and not (places.store / manifest.ROOT).exists():
        shutil.rmtree(places.store)


def discard_store(places: Places) -> None:
    """Delete the unfinished new cache, keeping the embeddings."""
    shutil.rmtree(places.store, ignore_errors=True)


def publish(places: Places) -> None:
    """Move the sealed store to its final name, and the old cache, if any, out of it; then clean
    up.
    """
    if places.path.exists():
        places.path.rename(places.replaced)
    places.store.rename(places.path)
    sync(places.path.parent)
    clean_up(places)


def clean_up(places: Places) -> None:
    """Delete everything in the partial folder that a build put there."""
    for folder in (places.replaced, places.vectors, places.store):
        if folder.exists():
            shutil.rmtree(folder)


def _leave(places: Places) -> None:
    """Take the builder's name away, and the partial folder too if it holds nothing that a later
    build could use.
    """
    places.builder.unlink(missing_ok=True)
    if places.partial.exists() and not any(places.partial.iterdir()):
        places.partial.rmdir()


def _holder(places: Places) -> str:
    try:
        who = json.loads(places.builder.read_bytes())
    except (FileNotFoundError, ValueError):
        return "another process"
    return f"process {who['pid']} on {who['host']} since {who['since']}"
