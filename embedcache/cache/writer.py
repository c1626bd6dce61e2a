"""Writing the Zarr arrays of a cache that is being built.

A file is a shard: `chunks_per_shard` chunks, each compressed and checksummed on its own, so that a
table of 100 million rows is hundreds of files, not tens of thousands, and a reader can still fetch
one chunk. A block of rows that fills a shard is encoded once; that is the unit in which rows
stream.

Chunks of two-dimensional row arrays are transposed before compression: a column's values lie
together, and columns of few distinct values, of which these tables are made, shrink to almost
nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.codecs import TransposeCodec

from embedcache.cache.codec import compressors
from embedcache.cache.consistency import state_hashes, vector_hashes
from embedcache.cache.layout import ROW_ARRAYS, Layout, RowBlock, StringSpec, StringTable, widths
from embedcache.config.cache import CacheConfig, CodecName
from embedcache.scaling import Scaling
from embedcache.table.strings import text_hashes

# of rows in a shard; a build holds several copies of that: measured below 1 GB at 28 features and
# any number of rows
MOST_BLOCK_BYTES = 64 << 20
CHUNK_VALUES = 1 << 20  # of arrays that are not rows


def rows_per_block(layout: Layout, cache: CacheConfig) -> int:
    """Return how many rows make a shard: as configured, fewer where rows are wide.

    A shard has at most MOST_BLOCK_BYTES, or one chunk.
    """
    row_bytes = sum(
        np.dtype(array.dtype).itemsize * widths(layout).get(array.name, 1) for array in ROW_ARRAYS
    )
    chunk = min(cache.rows_per_chunk, layout.num_rows)
    affordable = max(1, MOST_BLOCK_BYTES // (row_bytes * chunk))
    needed = -(-layout.num_rows // chunk)
    return chunk * min(cache.chunks_per_shard, affordable, needed)


class StoreWriter:
    """Fills a folder with the groups and arrays of a cache.

    It becomes a Zarr hierarchy when `manifest.seal` writes the root.
    """

    def __init__(self, folder: Path, layout: Layout, cache: CacheConfig) -> None:
        """Create the folder, which must not exist, and in it the row arrays."""
        folder.mkdir()
        self._folder = folder
        self._layout = layout
        self._codec = cache.codec
        self.rows_per_block = rows_per_block(layout, cache)
        self._create_rows(min(cache.rows_per_chunk, layout.num_rows))
        self._written = 0

    def _create_rows(self, chunk: int) -> None:
        layout = self._layout
        rows = zarr.create_group(self._folder / "rows")
        names = {
            "string_id": [spec.name for spec in layout.strings],
            "string_hash": [spec.name for spec in layout.strings],
            "numeric": [column.column for column in layout.numeric],
            "category": [column for column, _ in layout.categories],
            "targets": [target.name for target in layout.targets],
            "facets": [column for column, _ in layout.facets],
        }
        self._rows: dict[str, zarr.Array[Any]] = {}
        for spec in ROW_ARRAYS:
            columns = names.get(spec.name)
            if columns == []:
                continue
            tail = () if columns is None else (len(columns),)
            self._rows[spec.name] = rows.create_array(
                spec.name,
                shape=(layout.num_rows, *tail),
                dtype=spec.dtype,
                chunks=(chunk, *tail),
                shards=(self.rows_per_block, *tail),
                filters=(TransposeCodec(order=(1, 0)),) if tail else (),
                compressors=compressors(self._codec, spec.dtype),
                fill_value=float("nan") if spec.dtype.startswith("float") else -1,
                dimension_names=("row",) if columns is None else ("row", spec.axis),
                attributes={} if columns is None else {"columns": columns},
                config={"write_empty_chunks": True},
            )

    def add_rows(self, block: RowBlock) -> None:
        """Append rows in table order.

        Blocks of `rows_per_block` rows are written without reading anything back.
        """
        stop = self._written + len(block.weight)
        for name, array in self._rows.items():
            array[self._written : stop] = getattr(block, name)
        self._written = stop

    def add_strings(self, spec: StringSpec, strings: StringTable) -> None:
        """Write the distinct strings of one column."""
        group = zarr.open_group(self._folder / "strings", mode="a").create_group(spec.name)
        text, tokens, vectors = strings.text, strings.tokens, strings.embeddings
        hashes = vector_hashes(text, tokens, vectors, strings.features)
        arrays: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
            "num_rows": (strings.num_rows.numpy(), ("string",)),
            "text_hash": (text_hashes(text), ("string",)),
            "vector_hash": (hashes, ("string",)),
        }
        if spec.width:
            arrays |= {
                "token_ids": (tokens.values.numpy(), ("token",)),
                "token_offsets": (tokens.offsets.numpy(), ("string_edge",)),
                "embeddings": (vectors.numpy(), ("string", "embedding")),
            }
        if tokens.states is not None:
            arrays["prefix"] = (tokens.states.numpy(), ("token", "embedding"))
            arrays["prefix_hash"] = (state_hashes(text, tokens), ("string",))
        _write_text(group, "text", text, "string")
        for array, (values, dimensions) in arrays.items():
            _write(group, array, values, dimensions, self._codec)
        if spec.features:
            _write(
                group,
                "features",
                strings.features.numpy(),
                ("string", "feature"),
                self._codec,
                {"columns": list(spec.feature_columns)},
            )

    def finish(self, scaling: Scaling) -> None:
        """Write the names of groups and the scaling; all rows must have been added."""
        assert self._written == self._layout.num_rows, (
            f"{self._written} of {self._layout.num_rows} rows were written"
        )
        if self._layout.groups:
            groups = zarr.create_group(self._folder / "groups")
            _write_text(groups, "name", self._layout.groups, "group")
        zarr.create_group(self._folder / "scaling", attributes=json.loads(scaling.to_json()))


def _write(
    group: zarr.Group,
    name: str,
    values: Shaped[np.ndarray, "..."],
    dimensions: tuple[str, ...],
    codec: CodecName,
    attributes: dict[str, Any] | None = None,
) -> None:
    length = max(1, min(len(values), CHUNK_VALUES // max(1, int(np.prod(values.shape[1:])))))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(length, *values.shape[1:]),
        compressors=compressors(codec, values.dtype),
        fill_value=float("nan") if values.dtype.kind == "f" else -1,
        dimension_names=dimensions,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    array[:] = values


def _write_text(group: zarr.Group, name: str, values: Sequence[str], dimension: str) -> None:
    array = group.create_array(
        name,
        shape=(len(values),),
        dtype=str,
        chunks=(max(1, min(len(values), CHUNK_VALUES)),),
        compressors=compressors("zstd", str),
        dimension_names=(dimension,),
        config={"write_empty_chunks": True},
    )
    array[:] = np.array(values, dtype=np.dtypes.StringDType())
