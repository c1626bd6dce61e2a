"""The digest of every file of a cache, kept in its root zarr.json, and the checks against it.

Zarr reads a missing chunk as the fill value, by design and silently; and the checksum inside
a chunk says nothing of a chunk that is gone, cut to nothing, or replaced by another valid one. So
the root's attributes hold the size and sha256 of every other file, and a digest of themselves.
Presence and sizes are checked when a cache is opened; a file's digest is checked before its first
use.

The manifest is part of the root zarr.json, not a file beside it: readers of Zarr warn about files
that belong to no array. Writing it is the last step of a build, in one rename, so a folder with a
root zarr.json is complete.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embedcache.errors import CorruptCacheError, MissingCacheError
from embedcache.files import file_digest, sync, write_atomically

ROOT = "zarr.json"
MOST_NAMED = 8  # files in one message


def seal(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write the root zarr.json of a finished store: its attributes and the digest of every file.

    All of it is on disk when this returns.
    """
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[file.relative_to(folder).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": file_digest(file),
        }
        sync(file)
    content = {**attributes, "complete": True, "files": files}
    document = {
        "attributes": {**content, "digest": _digest_of(content)},
        "node_type": "group",
        "zarr_format": 3,
    }
    write_atomically(folder / ROOT, _canonical(document))


def read_root(folder: Path, config: str = "...") -> dict[str, Any]:
    """Return the root attributes of a sealed store; `config` is the one to build it by, if known.

    Raises MissingCacheError where there is none, CorruptCacheError where the root is not intact.
    """
    root = folder / ROOT
    is_ours = (folder / "rows" / ROOT).is_file()
    if not root.is_file():
        if is_ours:
            raise CorruptCacheError(f"{folder}: the root metadata {ROOT} is missing; {REBUILD}")
        what = f"{folder} is no cache" if folder.exists() else f"there is no cache at {folder}"
        if folder.is_file():
            what = f"{folder} is a file, and a cache is a folder"
        raise MissingCacheError(f"{what}; build one with: embedcache build --config {config}")
    text = root.read_bytes()
    try:
        document = json.loads(text)
        attributes = document["attributes"]
        content = {name: value for name, value in attributes.items() if name != "digest"}
        intact = attributes["digest"] == _digest_of(content) and _canonical(document) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, content = False, {}
    if not intact and not is_ours:
        raise MissingCacheError(
            f"{folder} is not a cache of this project; choose another cache.path"
        )
    if not intact:
        raise CorruptCacheError(
            f"{folder}: the root metadata {ROOT} was changed or damaged; {REBUILD}"
        )
    return content


def check_presence(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CorruptCacheError if a file is missing or has another size than the manifest says."""
    wrong = []
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            wrong.append(f"{describe(name)} is missing")
            continue
        if size != entry["bytes"]:
            wrong.append(f"{describe(name)} has {size:,} bytes instead of {entry['bytes']:,}")
    _raise_if_any(folder, wrong)


def check_digests(
    folder: Path, files: Mapping[str, Mapping[str, Any]], names: Iterable[str]
) -> None:
    """Raise CorruptCacheError if the bytes of one of these files are not those written."""
    wrong = []
    for name in names:
        try:
            if file_digest(folder / name) != files[name]["sha256"]:
                wrong.append(f"the bytes of {describe(name)} changed")
        except FileNotFoundError:
            wrong.append(f"{describe(name)} is missing")
    _raise_if_any(folder, wrong)


def describe(name: str) -> str:
    """Return the array and chunk that a file of the store holds."""
    owner, _, last = name.rpartition("/")
    if last == ROOT:
        return f"the metadata of '{owner}'"
    array, _, chunk = name.partition("/c/")
    return f"array '{array}', chunk {chunk}"


REBUILD = "rebuild the cache: run the same `embedcache build` command with --overwrite"


def _canonical(document: Mapping[str, Any]) -> bytes:
    """Return the one spelling of a JSON document, so that every changed byte shows."""
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _raise_if_any(folder: Path, wrong: list[str]) -> None:
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise CorruptCacheError(
            f"{folder} is damaged: " + "; ".join(wrong[:MOST_NAMED]) + more + f"\n{REBUILD}"
        )
