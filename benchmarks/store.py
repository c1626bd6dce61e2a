"""The cache on disk: bytes, time to write, time to the first batch and to read all rows, against
Parquet, NumPy and safetensors; and codecs.

Every format holds the same rows of the reference cohort, and must give them back bit for bit before
it is timed. Formats take turns, so that other work on the machine meets all alike; medians are
shown. "First batch" opens the file and reads 8,192 rows from its middle; files are in the page
cache, so what is timed is decoding, not the disk. Only the cache checks digests and that each row's
string is its own; the table also shows it without.
"""

import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec, Shuffle

from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from embedcache.build.blocks import reblocked
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.layout import ROW_ARRAYS, RowBlock
from embedcache.cache.reader import Cache, open_cache
from embedcache.cache.writer import StoreWriter
from embedcache.config import CacheConfig

BATCH_ROWS = 8192
REPEATS = 5
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """How rows are written to a place and read back."""

    what: str
    write: Callable[[Path, Arrays], None]
    read: Callable[[Path, int, int], Arrays]


def main(words: list[str]) -> None:
    """Measure formats and codecs on a cache and write benchmarks/results/store.json and .md."""
    command = parser("store", __doc__ or "")
    command.add_argument(
        "--cache",
        type=Path,
        required=True,
        help="a built cache, such as that of the reference cohort",
    )
    arguments = command.parse_args(words)
    cache = open_cache(arguments.cache)
    rows = {
        field.name: np.ascontiguousarray(getattr(cache.rows(), field.name))
        for field in fields(RowBlock)
    }
    rows = {name: values for name, values in rows.items() if values.size}
    repeats = 1 if arguments.quick else REPEATS
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            **stamp(),
            "quick": arguments.quick,
            "num_rows": cache.layout.num_rows,
            "memory_bytes": sum(values.nbytes for values in rows.values()),
            "formats": in_turns(formats(cache), rows, Path(folder), repeats),
            "codecs": codecs(rows, Path(folder), repeats),
        }
    publish(output_path("store", arguments), found, as_markdown, draw)


def formats(cache: Cache) -> dict[str, Format]:
    """Return the formats by name; the cache's own layout and metadata are those of `cache`."""

    def write_cache(place: Path, rows: Arrays) -> None:
        writer = StoreWriter(place, cache.layout, CacheConfig())
        for spec in cache.layout.strings:
            writer.add_strings(spec.name, cache.strings(spec.name))
        for block in reblocked([RowBlock(**{**_empty(cache), **rows})], writer.rows_per_block):
            writer.add_rows(block)
        writer.finish(cache.scaling)
        identity = {
            "format_version": FORMAT_VERSION,
            "identity": dict(cache.identity.parts),
            "provenance": cache.provenance,
            "report": cache.report,
        }
        manifest.seal(
            place, {**identity, "layout": cache.layout.model_dump(mode="json", exclude={"groups"})}
        )

    def read_cache(place: Path, start: int, stop: int) -> Arrays:
        block = open_cache(place).rows(start, stop)
        return {field.name: getattr(block, field.name) for field in fields(RowBlock)}

    def read_zarr(place: Path, start: int, stop: int) -> Arrays:
        group = zarr.open_group(place / "rows", mode="r")
        return {name: np.asarray(array[start:stop]) for name, array in group.arrays()}

    return {
        "cache.zarr": Format("ours, checked and synchronised to disk", write_cache, read_cache),
        "cache.zarr, unchecked": Format("the same arrays by plain zarr", write_cache, read_zarr),
        "Parquet": Format("polars, zstd, row groups of 65,536", _write_parquet, _read_parquet),
        "NumPy": Format("one .npy per array, memory-mapped", _write_numpy, _read_numpy),
        "safetensors": Format(
            "one file", lambda place, rows: save_file(rows, place), _read_safetensors
        ),
    }


def in_turns(chosen: dict[str, Format], rows: Arrays, folder: Path, repeats: int) -> dict[str, Any]:
    """Return what each format takes, measured in turns."""
    num_rows = len(rows["weight"])
    middle = num_rows // 2
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"write_s": [], "first_batch_s": [], "read_s": []} for name in chosen
    }
    num_bytes = {}
    for _ in range(repeats):
        for number, (name, form) in enumerate(chosen.items()):
            place = folder / f"format{number}"
            _remove(place)
            seconds[name]["write_s"].append(
                _timed(lambda form=form, place=place: form.write(place, rows))[0]
            )
            taken, batch = _timed(
                lambda form=form, place=place: form.read(
                    place, middle, min(middle + BATCH_ROWS, num_rows)
                )
            )
            seconds[name]["first_batch_s"].append(taken)
            _same(
                batch,
                {key: values[middle : middle + BATCH_ROWS] for key, values in rows.items()},
                name,
            )
            taken, whole = _timed(lambda form=form, place=place: form.read(place, 0, num_rows))
            seconds[name]["read_s"].append(taken)
            _same(whole, rows, name)
            num_bytes[name] = sum(
                file.stat().st_size for file in [place, *place.rglob("*")] if file.is_file()
            )
    return {
        name: {"what": chosen[name].what, "bytes": num_bytes[name], **_medians(seconds[name])}
        for name in chosen
    }


def codecs(rows: Arrays, folder: Path, repeats: int) -> dict[str, Any]:
    """Return bytes, encoding and decoding time of each lossless codec on the row arrays, sharded
    and transposed as the store has them.
    """
    candidates: dict[str, Sequence[Any]] = {
        "zstd 3 (zarr)": (ZstdCodec(level=3),),
        "zstd 9 (zarr)": (ZstdCodec(level=9),),
        "byte shuffle + zstd 3 (numcodecs, zarr)": ("shuffle", ZstdCodec(level=3)),
        "byte shuffle + zstd 3 (zarr's Blosc)": ("byteshuffle",),
        "bit shuffle + zstd 3 (zarr's Blosc)": ("bitshuffle",),
    }
    if _has_pcodec():
        candidates["PCodec (numcodecs), not transposed"] = ("pcodec",)
    found: dict[str, Any] = {}
    times: dict[str, dict[str, list[float]]] = {
        name: {"write_s": [], "read_s": []} for name in candidates
    }
    for _ in range(repeats):
        for name, chosen in candidates.items():
            place = folder / "codec.zarr"
            _remove(place)
            taken, sizes = _timed(
                lambda place=place, chosen=chosen: _write_arrays(place, rows, chosen)
            )
            times[name]["write_s"].append(taken)
            taken, read = _timed(
                lambda place=place: {
                    key: np.asarray(array[:])
                    for key, array in zarr.open_group(place, mode="r").arrays()
                }
            )
            times[name]["read_s"].append(taken)
            _same(read, rows, name)
            found[name] = {"bytes": sum(sizes.values()), "bytes_by_array": sizes}
    return {name: {**found[name], **_medians(times[name])} for name in candidates}


def _write_arrays(place: Path, rows: Arrays, chosen: Sequence[Any]) -> dict[str, int]:
    group, sizes, config = zarr.create_group(place), {}, CacheConfig()
    for name, values in rows.items():
        tail = values.shape[1:]
        width = values.dtype.itemsize
        made: dict[str, Sequence[Any]] = {
            "shuffle": (Shuffle(elementsize=width),),
            "byteshuffle": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=width),),
            "bitshuffle": (
                BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=width),
            ),
        }
        compressors = [
            codec
            for part in chosen
            for codec in (
                made[part]
                if isinstance(part, str) and part in made
                else ()
                if isinstance(part, str)
                else (part,)
            )
        ]
        serializer = PCodec() if "pcodec" in chosen and width > 1 else "auto"
        chunk = min(config.rows_per_chunk, len(values))
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk, *tail),
            shards=(chunk * min(config.chunks_per_shard, -(-len(values) // chunk)), *tail),
            # transposed, numcodecs' PCodec 0.16 gives back other values
            filters=(TransposeCodec(order=(1, 0)),) if tail and serializer == "auto" else (),
            serializer=serializer,
            compressors=(
                *(compressors or ((ZstdCodec(level=3),) if serializer == "auto" else ())),
                Crc32cCodec(),
            ),
            config={"write_empty_chunks": True},
        )
        array[:] = values
        sizes[name] = sum(
            file.stat().st_size for file in (place / name).rglob("*") if file.is_file()
        )
    return sizes


def _has_pcodec() -> bool:
    return importlib.util.find_spec("pcodec") is not None  # an optional part of numcodecs


def _write_parquet(place: Path, rows: Arrays) -> None:
    columns = {
        f"{name}:{k}": values.reshape(len(values), -1)[:, k]
        for name, values in rows.items()
        for k in range(values.reshape(len(values), -1).shape[1])
    }
    pl.DataFrame(columns).write_parquet(
        place, compression="zstd", compression_level=3, row_group_size=65_536
    )


def _read_parquet(place: Path, start: int, stop: int) -> Arrays:
    frame = pl.scan_parquet(place, glob=False).slice(start, stop - start).collect()
    names: dict[str, list[str]] = {}
    for column in frame.columns:
        names.setdefault(column.split(":")[0], []).append(column)
    one = {"weight", "group", "stratum", "split"}
    return {
        name: (
            frame[own[0]].to_numpy()
            if name in one
            else np.stack([frame[c].to_numpy() for c in own], axis=1)
        )
        for name, own in names.items()
    }


def _write_numpy(place: Path, rows: Arrays) -> None:
    place.mkdir()
    for name, values in rows.items():
        np.save(place / f"{name}.npy", values)


def _read_numpy(place: Path, start: int, stop: int) -> Arrays:
    return {
        file.stem: np.array(np.load(file, mmap_mode="r")[start:stop])
        for file in place.glob("*.npy")
    }


def _read_safetensors(place: Path, start: int, stop: int) -> Arrays:
    with safe_open(place, framework="numpy") as file:
        return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118


def _empty(cache: Cache) -> Arrays:
    """Return the arrays that have no columns in this cache."""
    return {
        spec.name: np.empty((cache.layout.num_rows, 0), dtype=spec.dtype)
        for spec in ROW_ARRAYS
        if spec.axis is not None
    }


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _same(found: Arrays, expected: Arrays, name: str) -> None:
    for key, values in expected.items():
        if np.ascontiguousarray(found[key]).tobytes() != np.ascontiguousarray(values).tobytes():
            raise AssertionError(
                f"{name}: '{key}' does not come back bit for bit; nothing is reported"
            )


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables."""
    memory, num_rows = found["memory_bytes"], found["num_rows"]
    lines = [
        f"# {num_rows:,} rows on disk ({memory / 1e6:,.0f} MB in memory)",
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['hardware']['cores']} cores."
        ),
        "",
        "| format | MB | write, s | first 8,192 rows, ms | all rows, s | MB/s in memory |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name}: {form['what']} | {form['bytes'] / 1e6:,.1f} | {form['write_s']:.2f} |"
        f" {1e3 * form['first_batch_s']:,.0f} | {form['read_s']:.2f} |"
        f" {memory / 1e6 / form['read_s']:,.0f} |"
        for name, form in found["formats"].items()
    ]
    lines += [
        "",
        "Codecs on the same arrays, sharded and transposed as in the store:",
        "",
        "| codec | MB | write, s | all rows, s |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {codec['bytes'] / 1e6:,.2f} | {codec['write_s']:.2f} | {codec['read_s']:.2f} |"
        for name, codec in found["codecs"].items()
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw bytes and times of all formats."""
    quantities = {
        "write": ("write_s", "seconds", 1.0),
        "first 8,192 rows": ("first_batch_s", "milliseconds", 1e3),
        "all rows": ("read_s", "seconds", 1.0),
    }
    bytes_on_disk = {name: form["bytes"] / 1e6 for name, form in found["formats"].items()}
    panels = [Panel("on disk", "MB", bytes_on_disk, {"in memory": found["memory_bytes"] / 1e6})]
    for title, (key, unit, scale) in quantities.items():
        panels.append(
            Panel(title, unit, {name: scale * form[key] for name, form in found["formats"].items()})
        )
    draw_bars(path, panels, ours=("cache.zarr",))
