"""How the arrays of a cache are compressed: by codecs of the Zarr v3 core alone, without loss.

`shuffle` orders the bytes of floats by significance before zstd, so that signs and exponents lie
together; integers of few values shrink more without. Blosc does it, which is in the core; numcodecs
saves another percent by a codec that other readers lack, and of which zarr warns.
"""

from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from embedcache.config.cache import CodecName

LEVEL = 3  # 9 saves 0.3 % and takes 1.6 times as long to write, 2.3 times to read


def compressors(codec: CodecName, dtype: Any) -> tuple[ZstdCodec | BloscCodec, Crc32cCodec]:
    """Return what compresses the chunks of an array of this type, and their checksum."""
    if codec == "shuffle" and np.dtype(dtype).kind == "f":
        return BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle"), Crc32cCodec()
    return ZstdCodec(level=LEVEL), Crc32cCodec()


def codec_of(floats: zarr.Array[Any]) -> CodecName:
    """Return the codec of the cache that this array of floats is part of."""
    is_shuffled = any(isinstance(codec, BloscCodec) for codec in floats.compressors)
    return "shuffle" if is_shuffled else "zstd"
