"""The cache on disk: bytes, time to write, time to the first batch and to read all rows, against
Parquet, NumPy and safetensors; and codecs.

Every format holds the same rows of the reference cohort, and must give them back bit for bit before
it is timed. Formats take turns, so that other work on the machine meets all alike; medians are
shown. "First batch" opens the file and reads 8,192 rows from its middle; files are in the page
cache, so what is timed is decoding, not the disk. Only the cache checks digests and that each row's
string is its own; the table also shows it without.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Column, Table, megabytes, named
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.setting import make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.store_formats import Arrays, Format, codecs, formats, row_arrays
from embedcache.cache.reader import open_cache
from embedcache.errors import UserError

BATCH_ROWS = 8192
REPEATS = 5


def main(words: list[str]) -> None:
    """Measure formats and codecs on a cache and write benchmarks/results/store.*."""
    command = parser("store", __doc__ or "")
    command.add_argument(
        "--cache",
        type=Path,
        help="a built cache, such as the reference cohort's (quick, unset: a small one is built)",
    )
    arguments = command.parse_args(words)
    if not (arguments.cache or arguments.quick):
        raise UserError("store needs --cache, such as the reference cohort's; or --quick")
    repeats = 1 if arguments.quick else REPEATS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.cache is None:
            tell("now building a small cache")
            make_setting(folder / "setting", "tiny", 300)
        cache = open_cache(arguments.cache or folder / "setting" / "cache.zarr")
        rows = row_arrays(cache)
        found: dict[str, Any] = {
            **stamp(),
            "quick": arguments.quick,
            "num_rows": cache.layout.num_rows,
            "memory_bytes": sum(values.nbytes for values in rows.values()),
            "formats": in_turns(formats(cache), rows, folder, repeats),
            "codecs": in_turns(codecs(), rows, folder, repeats),
        }
    publish(output_path("store", arguments), found, report)


def in_turns(chosen: dict[str, Format], rows: Arrays, folder: Path, repeats: int) -> dict[str, Any]:
    """Return the bytes of each format and its median seconds, measured in turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for repeat in range(repeats):
        for name, form in chosen.items():
            tell(f"now measuring {name}, {repeat + 1} of {repeats}")
            path = folder / "format"
            runs[name].append(_one_run(name, form, rows, path))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {
        name: {
            "what": chosen[name].what,
            **{key: statistics.median(run[key] for run in own) for key in own[0]},
        }
        for name, own in runs.items()
    }


def _one_run(name: str, form: Format, rows: Arrays, path: Path) -> dict[str, float]:
    """Return bytes and seconds of writing once, and of reading a batch and all."""
    num_rows = len(rows["weight"])
    middle = num_rows // 2
    stop = min(middle + BATCH_ROWS, num_rows)
    write_s, _ = _timed(lambda: form.write(path, rows))
    first_batch_s, batch = _timed(lambda: form.read(path, middle, stop))
    _assert_same(batch, {key: values[middle:stop] for key, values in rows.items()}, name)
    read_s, whole = _timed(lambda: form.read(path, 0, num_rows))
    _assert_same(whole, rows, name)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return {
        "bytes": sum(file.stat().st_size for file in files),
        "write_s": write_s,
        "first_batch_s": first_batch_s,
        "read_s": read_s,
    }


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _assert_same(found: Arrays, expected: Arrays, name: str) -> None:
    for key, values in expected.items():
        if np.ascontiguousarray(found[key]).tobytes() != np.ascontiguousarray(values).tobytes():
            raise AssertionError(
                f"{name}: '{key}' does not come back bit for bit; nothing is reported"
            )


def report(found: dict[str, Any]) -> Report:
    """Return bytes and times of formats and codecs."""
    memory = found["memory_bytes"]
    of_formats = (
        Column("format", lambda row: f"{row['name']}: {row['what']}"),
        Column("MB", "bytes", megabytes),
        Column("write, s", "write_s", ".2f"),
        Column("first 8,192 rows, ms", lambda row: 1e3 * row["first_batch_s"], ",.0f"),
        Column("all rows, s", "read_s", ".2f"),
        Column("MB/s in memory", lambda row: memory / 1e6 / row["read_s"], ",.0f"),
    )
    of_codecs = (
        Column("codec", "name"),
        Column("MB", lambda row: row["bytes"] / 1e6, ",.2f"),
        Column("write, s", "write_s", ".2f"),
        Column("all rows, s", "read_s", ".2f"),
    )
    size = {name: form["bytes"] / 1e6 for name, form in found["formats"].items()}
    panels = [Panel("on disk", "MB", size, {"in memory": memory / 1e6}, ("cache.zarr",))]
    for title, key, unit, scale in (
        ("write", "write_s", "seconds", 1.0),
        ("first 8,192 rows", "first_batch_s", "milliseconds", 1e3),
        ("all rows", "read_s", "seconds", 1.0),
    ):
        bars = {name: scale * form[key] for name, form in found["formats"].items()}
        panels.append(Panel(title, unit, bars, ours=("cache.zarr",)))
    return Report(
        f"{found['num_rows']:,} rows on disk ({memory / 1e6:,.0f} MB in memory)",
        (),
        (
            Table(of_formats, named(found["formats"])),
            "Codecs on the same arrays, sharded and transposed as in the store:",
            Table(of_codecs, named(found["codecs"])),
        ),
        panels,
    )
