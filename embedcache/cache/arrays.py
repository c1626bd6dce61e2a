"""The arrays of a cache, whose bytes are those that were written.

Nothing is decoded before the digests of its files were compared with the root's, each file once.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped

from embedcache.cache import manifest
from embedcache.errors import CorruptCacheError


class CheckedArrays:
    """The zarr arrays of the store at `path`; `files` are those that its root lists."""

    def __init__(self, path: Path, files: dict[str, dict[str, Any]]) -> None:
        """Check the metadata of all groups and arrays."""
        self._path, self._files = path, files
        self._checked: set[str] = set()
        self._check(name for name in files if name.endswith("/" + manifest.ROOT))
        self._group = zarr.open_group(path, mode="r")

    def __contains__(self, name: str) -> bool:
        """Whether there is such an array or group."""
        return name in self._group

    def attributes(self, group: str) -> dict[str, Any]:
        """Return the attributes of a group; ValueError where it is not there."""
        if group not in self._group:
            raise ValueError(f"there is no group '{group}'")
        return self._group[group].attrs.asdict()

    def array(self, name: str) -> zarr.Array[Any]:
        """Return what zarr knows of an array; its bytes are read by `read` and `read_rows`."""
        array = self._group.get(name)
        if not isinstance(array, zarr.Array):
            raise CorruptCacheError(f"{self._path}: array '{name}' is missing; {manifest.REBUILD}")
        return array

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """Return a whole array."""
        self._check(self._chunks_of(name))
        return self._decode(name, slice(None))

    def read_rows(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "N ..."]:
        """Return rows `start` to `stop` of an array, of which there is at least one."""
        array = self.array(name)
        length = (array.shards or array.chunks)[0]
        tail = "/0" * (len(array.shape) - 1)
        shards = range(start // length, (stop - 1) // length + 1)
        self._check(f"{name}/c/{shard}{tail}" for shard in shards)
        return self._decode(name, slice(start, stop))

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Return the shape and type of each array, and its bytes on disk and in memory.

        The bytes in memory are 0 for text, whose size there is not fixed.
        """
        sizes = {}
        for name, array in self._group.members(max_depth=None):
            if isinstance(array, zarr.Array):
                is_text = array.dtype.kind == "T"
                sizes[name] = {
                    "shape": list(array.shape),
                    "dtype": "text" if is_text else str(array.dtype),
                    "bytes": sum(self._files[file]["bytes"] for file in self._chunks_of(name)),
                    "memory_bytes": 0 if is_text else array.nbytes,
                }
        return sizes

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CorruptCacheError unless arrays have these shapes, and all their chunks' files."""
        listed = Counter(file.partition("/c/")[0] for file in self._files if "/c/" in file)
        for name, shape in shapes.items():
            array = self.array(name)
            lengths = array.shards or array.chunks
            parts = zip(array.shape, lengths, strict=True)
            num_files = math.prod(-(-size // length) for size, length in parts)
            if array.shape != shape or listed[name] != num_files:
                raise CorruptCacheError(
                    f"{self._path}: array '{name}' is {list(array.shape)} in {num_files} files, the"
                    f" root says {list(shape)} and lists {listed[name]}; {manifest.REBUILD}"
                )

    def check_all(self) -> None:
        """Compare the digest of every file, also of those that were compared before."""
        self._checked.clear()
        self._check(self._files)

    def _decode(self, name: str, rows: slice) -> Shaped[np.ndarray, "N ..."]:
        try:
            return np.asarray(self.array(name)[rows])
        # what zarr's codecs raise on bytes that changed after their digest was checked
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptCacheError(
                f"{self._path}: array '{name}' cannot be decoded: {error}; {manifest.REBUILD}"
            ) from error

    def _chunks_of(self, name: str) -> list[str]:
        """Return the files that hold the chunks of an array."""
        return [file for file in self._files if file.startswith(f"{name}/c/")]

    def _check(self, names: Iterable[str]) -> None:
        """Check that files are still there, and the digests of those that were not checked yet."""
        names = list(names)
        unlisted = [name for name in names if name not in self._files]
        if unlisted:
            raise CorruptCacheError(
                f"{self._path}: the root does not list {unlisted[0]}; {manifest.REBUILD}"
            )
        manifest.check_presence(self._path, {name: self._files[name] for name in names})
        fresh = [name for name in names if name not in self._checked]
        manifest.check_digests(self._path, self._files, fresh)
        self._checked.update(fresh)
