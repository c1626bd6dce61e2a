"""Whether a cache is there already, is in the way, is appended to or replaced; `phases` builds it.

Everything that can be wrong with the user's table, config or encoder is found before the first row
is written. The encoder sees each distinct string once; rows stream through in blocks, so memory
does not grow with the table. See `cache.folder` for what a kill or a second builder meets, and
`files` for how a table grows.
"""

from enum import Enum

from embedcache.build.identity import differs_in_rotation, has_states, wanted_identity
from embedcache.build.phases import write_store
from embedcache.build.report import UP_TO_DATE, BuildReport
from embedcache.build.request import BuildRequest
from embedcache.cache.folder import CacheFolder
from embedcache.cache.identity import Identity
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.cache import CacheConfig
from embedcache.config.encoder import EncoderConfig
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import (
    CacheError,
    ConfigError,
    CorruptCacheError,
    MissingCacheError,
    StaleCacheError,
)
from embedcache.ranks import ALONE, Ranks


class Existing(Enum):
    """What may become of a cache that is in the way."""

    KEEP = "refuse to touch it"
    APPEND = "append the files that it does not have"
    OVERWRITE = "replace it"


def build_cache(
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    encoder: EncoderConfig,
    cache: CacheConfig,
    existing: Existing = Existing.KEEP,
    ranks: Ranks = ALONE,
) -> BuildReport:
    """Build the cache of a config at `cache.path`, unless it is there, and return what it holds.

    Of several ranks, rank 0 calls this and the others `vectors.serve`.

    Raises TableError, SplitError, EncoderError and TokenizerError for what is wrong with the input,
    StaleCacheError where a cache of another identity is in the way and `existing` does not say what
    to do with it, BusyCacheError where another process builds it, CacheError where the disk is
    full. After any error or kill the cache that was there before is still there.
    """
    if unread := data.unread(encoder):
        raise ConfigError(
            f"encoder.mode is none, and string column {', '.join(map(repr, unread))} has no"
            " features: nothing would read it"
        )
    folder = CacheFolder(cache.path)
    with folder.locked():
        folder.recover()
        found = _cache_in_the_way(folder, existing)
        # the files that are appended to need not be there any more: their rows are in the cache
        appends = found is not None and existing is Existing.APPEND
        known_files = found.identity.files if found is not None and appends else ()
        known_tables = found.identity.entries if appends and found is not None else None
        wanted = wanted_identity(data, targets, split, encoder, known_files, known_tables)
        if found is not None and found.identity == wanted and has_states(found, data, encoder):
            folder.clean_up()
            return BuildReport.of(found, UP_TO_DATE)
        base = _appended_to(folder, found, wanted, existing)
        finished = folder.finished(wanted)
        if finished is None or not has_states(finished, data, encoder):
            folder.discard_store()
            request = BuildRequest(data, targets, split, encoder, cache)
            write_store(request, folder, wanted, found, base, ranks)
        folder.publish()
        return BuildReport.of(open_cache(folder.path), "built" if base is None else "appended to")


def _cache_in_the_way(folder: CacheFolder, existing: Existing) -> Cache | None:
    """Return the sound cache at the path, if any.

    Raises CacheError if there is something else, which may not be replaced.
    """
    try:
        found = open_cache(folder.path)
        found.verify()
    except MissingCacheError:
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise CacheError(
                f"{folder.path} exists and is not a cache of this project; it is left alone: choose"
                " another cache.path"
            ) from None
        return None
    except (CorruptCacheError, StaleCacheError):
        if existing is Existing.OVERWRITE:
            return None
        raise
    return found


def _appended_to(
    folder: CacheFolder, found: Cache | None, wanted: Identity, existing: Existing
) -> Cache | None:
    """Return the cache whose rows the wanted one begins with, or None to build all of it.

    Raises StaleCacheError where neither is allowed.
    """
    if found is None or existing is Existing.OVERWRITE:
        return None
    if found.identity == wanted:
        return None  # the cache lacks nothing but hidden states
    grows = found.identity.grows_into(wanted)
    if grows and existing is Existing.APPEND:
        return found
    if grows:
        added = len(wanted.files) - len(found.identity.files)
        raise StaleCacheError(
            f"{folder.path} holds the first {len(found.identity.files)} of the {len(wanted.files)}"
            f" files of data.path; to add the other {added}, run the same command with --append"
            " (rows, string ids and splits of the others stay as they are) or with --overwrite"
            " (all is built anew)"
        )
    lines = "\n".join(f"  - {line}" for line in found.identity.difference(wanted))
    if differs_in_rotation(found, wanted):
        raise StaleCacheError(
            f"{folder.path} holds the same rows and folds with another rotation:\n{lines}\n"
            "Training and evaluation take it as it is, in any rotation (in Python:"
            " embedcache.build.rotation.rotated). Run the same command with --overwrite to write"
            " this rotation, or set another cache.path"
        )
    only_files = "Only files can be appended, behind those that it was built from. "
    raise StaleCacheError(
        f"{folder.path} was built from something else ({found.identity.short}) than this config"
        f" asks for ({wanted.short}):\n{lines}\n"
        f"{only_files if existing is Existing.APPEND else ''}"
        "Run the same command with --overwrite to replace it, or set another cache.path"
    )
