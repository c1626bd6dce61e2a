"""The formats and codecs that `store` compares: how rows are written to a path and read back."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec, Shuffle

from embedcache.build.blocks import reblocked
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.layout import ROW_ARRAYS, RowBlock
from embedcache.cache.reader import Cache, open_cache
from embedcache.cache.writer import StoreWriter
from embedcache.config.cache import CacheConfig

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """How rows are written to a path and read back."""

    what: str
    write: Callable[[Path, Arrays], None]
    read: Callable[[Path, int, int], Arrays]


def row_arrays(cache: Cache) -> Arrays:
    """Return the arrays of all rows by name, without those that have no columns."""
    rows = cache.rows()
    arrays = {field.name: getattr(rows, field.name) for field in fields(RowBlock)}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items() if array.size}


def formats(cache: Cache) -> dict[str, Format]:
    """Return the formats by name; the cache's own layout and metadata are those of `cache`."""
    write = partial(_write_cache, cache)
    return {
        "cache.zarr": Format("ours, checked and synchronised to disk", write, _read_cache),
        "cache.zarr, unchecked": Format(
            "the same arrays by plain zarr",
            write,
            lambda path, start, stop: _read_zarr(path / "rows", start, stop),
        ),
        "Parquet": Format("polars, zstd, row groups of 65,536", _write_parquet, _read_parquet),
        "NumPy": Format("one .npy per array, memory-mapped", _write_numpy, _read_numpy),
        "safetensors": Format(
            "one file", lambda path, rows: save_file(rows, path), _read_safetensors
        ),
    }


def codecs() -> dict[str, Format]:
    """Return lossless codecs by name, on arrays that are sharded and transposed as the cache's."""

    def blosc(shuffle: str, width: int) -> tuple[Any, ...]:
        return (BloscCodec(cname="zstd", clevel=3, shuffle=shuffle, typesize=width),)

    compressors: dict[str, Callable[[int], tuple[Any, ...]]] = {
        "zstd 3 (zarr)": lambda _: (ZstdCodec(level=3),),
        "zstd 9 (zarr)": lambda _: (ZstdCodec(level=9),),
        "byte shuffle + zstd 3 (numcodecs, zarr)": lambda width: (
            Shuffle(elementsize=width),
            ZstdCodec(level=3),
        ),
        "byte shuffle + zstd 3 (zarr's Blosc)": partial(blosc, "shuffle"),
        "bit shuffle + zstd 3 (zarr's Blosc)": partial(blosc, "bitshuffle"),
    }
    found = {
        name: Format(name, partial(_write_arrays, made), _read_zarr)
        for name, made in compressors.items()
    }
    if importlib.util.find_spec("pcodec") is not None:  # an optional part of numcodecs
        name = "PCodec (numcodecs), not transposed"
        found[name] = Format(name, _write_by_pcodec, _read_zarr)
    return found


def _write_arrays(compressors: Callable[[int], tuple[Any, ...]], path: Path, rows: Arrays) -> None:
    """Write arrays, transposed, by the compressors of their items' width in bytes."""
    group = zarr.create_group(path)
    for name, values in rows.items():
        _write_array(
            group,
            name,
            values,
            filters=(TransposeCodec(order=(1, 0)),) if values.ndim > 1 else (),
            compressors=(*compressors(values.dtype.itemsize), Crc32cCodec()),
        )


def _write_by_pcodec(path: Path, rows: Arrays) -> None:
    """Write arrays by PCodec, which knows no bytes: those are left to zstd.

    Behind a transpose, numcodecs' PCodec 0.16 gives back other values.
    """
    group = zarr.create_group(path)
    for name, values in rows.items():
        if values.dtype.itemsize > 1:
            _write_array(group, name, values, serializer=PCodec(), compressors=(Crc32cCodec(),))
        else:
            _write_array(group, name, values, compressors=(ZstdCodec(level=3), Crc32cCodec()))


def _write_array(group: zarr.Group, name: str, values: np.ndarray, **codec: Any) -> None:
    """Write one array in the chunks and shards of the cache."""
    config, tail = CacheConfig(), values.shape[1:]
    chunk = min(config.rows_per_chunk, len(values))
    chunks_per_shard = min(config.chunks_per_shard, -(-len(values) // chunk))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *tail),
        shards=(chunk * chunks_per_shard, *tail),
        config={"write_empty_chunks": True},
        **codec,
    )
    array[:] = values


def _read_zarr(path: Path, start: int, stop: int) -> Arrays:
    arrays = zarr.open_group(path, mode="r").arrays()
    return {name: np.asarray(array[start:stop]) for name, array in arrays}


def _write_cache(cache: Cache, path: Path, rows: Arrays) -> None:
    writer = StoreWriter(path, cache.layout, CacheConfig())
    for spec in cache.layout.strings:
        writer.add_strings(spec, cache.strings(spec.name, with_states=True))
    empty = {
        spec.name: np.empty((cache.layout.num_rows, 0), dtype=spec.dtype)
        for spec in ROW_ARRAYS
        if spec.axis is not None
    }
    for block in reblocked([RowBlock(**{**empty, **rows})], writer.rows_per_block):
        writer.add_rows(block)
    writer.finish(cache.scaling)
    attributes = {
        "format_version": FORMAT_VERSION,
        "identity": dict(cache.identity.entries),
        "provenance": cache.provenance,
        "report": cache.report,
        "layout": cache.layout.model_dump(mode="json", exclude={"groups"}),
    }
    manifest.seal(path, attributes)


def _read_cache(path: Path, start: int, stop: int) -> Arrays:
    block = open_cache(path).rows(start, stop)
    return {field.name: getattr(block, field.name) for field in fields(RowBlock)}


def _write_parquet(path: Path, rows: Arrays) -> None:
    columns = {}
    for name, values in rows.items():
        flat = values.reshape(len(values), -1)
        columns |= {f"{name}:{number}": flat[:, number] for number in range(flat.shape[1])}
    frame = pl.DataFrame(columns)
    frame.write_parquet(path, compression="zstd", compression_level=3, row_group_size=65_536)


def _read_parquet(path: Path, start: int, stop: int) -> Arrays:
    frame = pl.scan_parquet(path, glob=False).slice(start, stop - start).collect()
    columns: dict[str, list[np.ndarray]] = {}
    for name in frame.columns:
        columns.setdefault(name.split(":")[0], []).append(frame[name].to_numpy())
    flat = {spec.name for spec in ROW_ARRAYS if spec.axis is None}
    return {
        name: values[0] if name in flat else np.stack(values, axis=1)
        for name, values in columns.items()
    }


def _write_numpy(path: Path, rows: Arrays) -> None:
    path.mkdir()
    for name, values in rows.items():
        np.save(path / f"{name}.npy", values)


def _read_numpy(path: Path, start: int, stop: int) -> Arrays:
    files = path.glob("*.npy")
    return {file.stem: np.array(np.load(file, mmap_mode="r")[start:stop]) for file in files}


def _read_safetensors(path: Path, start: int, stop: int) -> Arrays:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118
