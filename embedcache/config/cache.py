"""Where the cache lies, how its arrays are cut and compressed, and what outlives it."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from embedcache.schema import Config
from embedcache.values import FolderToWrite

CodecName = Literal["zstd", "shuffle"]
VECTORS = "EMBEDCACHE_VECTORS"  # environment variable: a folder, or off


def _folder_or_none(value: Any) -> Any:
    """Return None for off, which YAML reads as false, and auto for on."""
    if isinstance(value, bool):
        return "auto" if value else None
    return None if value == "off" else value


class CacheConfig(Config):
    """Where the cache lies, how its arrays are cut and compressed, and what outlives it."""

    path: FolderToWrite = Field(default="cache.zarr", description="the cache's folder")
    rows_per_chunk: int = Field(
        default=65_536, ge=1, le=2**22, description="rows that are compressed, and read, together"
    )
    chunks_per_shard: int = Field(
        default=16, ge=1, le=65_536, description="chunks that share one file"
    )
    codec: CodecName = Field(
        default="zstd",
        description=(
            "shuffle: the bytes of floats by significance before zstd; 8 % fewer bytes (13.3 MB"
            " instead of 14.4 for 447,480 rows), and no more CPU time to write or to read."
            " A cache that is there keeps its codec, also when it is appended to"
        ),
    )
    vectors: Annotated[FolderToWrite | StrictBool | None, BeforeValidator(_folder_or_none)] = Field(
        default="auto",
        description=(
            "a folder in which vectors outlive the cache: what one encoder has made of a string is"
            " not made again for another split, target or table; all builds share it. auto: the one"
            " that the environment variable EMBEDCACHE_VECTORS names, or else embedcache/vectors in"
            " the user's cache directory; off: none"
        ),
    )
    vectors_gib: float = Field(
        default=10.0,
        ge=1e-6,
        le=1e6,
        description="how large that folder may grow; what was used longest ago is removed first",
    )

    @model_validator(mode="after")
    def _vectors_lie_apart(self) -> "CacheConfig":
        if isinstance(self.vectors, str):
            vectors, path = os.path.realpath(self.vectors), os.path.realpath(self.path)
            if os.path.commonpath([vectors, path]) == path:
                raise ValueError(
                    f"vectors ({self.vectors}) lies in the cache itself, path, which is replaced as"
                    " a whole; choose a folder elsewhere, or auto"
                )
        return self

    @property
    def vectors_folder(self) -> Path | None:
        """Where vectors outlive caches; None where they do not."""
        if self.vectors != "auto":
            return Path(self.vectors) if isinstance(self.vectors, str) else None
        named = os.environ.get(VECTORS, "")
        if named:
            return None if named == "off" else Path(os.path.expanduser(named))
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        # without a home there is none, and a relative folder is no place that builds share
        return Path(root, "embedcache", "vectors") if os.path.isabs(root) else None

    @property
    def vectors_bytes(self) -> int:
        """How large that folder may grow."""
        return int(self.vectors_gib * 2**30)
