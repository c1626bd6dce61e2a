"""Phase 1 at size: many rows of few strings, and many strings on one rank and two.

Rows. A Parquet of random rows is generated in row groups, never held; the cache is built from it in
a process of its own, whose peak memory the kernel reports. Strings. As many random valid polymer
strings, one row each, are encoded by one rank and by two on the same cores; before rates are
reported, both must give the same vectors.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from polars.io.plugins import register_io_source

from benchmarks.harness.cells import Column, Table, gib, megabytes, named
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from benchmarks.harness.workers import run_python
from embedcache.cache.reader import Cache, open_cache

ROW_GROUP = 1 << 18
NUM_FEATURES = 8
NUM_GROUPS = 400
POLYMERS = (
    "[*]CC[*]",
    "[*]CC([*])C",
    "[*]CC([*])c1ccccc1",
    "[*]CC([*])C#N",
    "[*]CCO[*]",
    "[*]c1ccc([*])s1",
    "[*]CC([*])(C)C(=O)OC",
    "[*]CC([*])Cl",
)
FRAGMENTS = (
    "C",
    "CC",
    "O",
    "N",
    "S",
    "C(C)",
    "C(=O)",
    "C(=O)O",
    "C(=O)N",
    "C(F)(F)",
    "C(C#N)",
    "C(C)(C)",
    "c1ccc(cc1)",
    "C(c1ccccc1)",
    "[Si](C)(C)O",
)


def main(words: list[str]) -> None:
    """Measure both parts and write benchmarks/results/build.*; quick: far fewer of a tiny size."""
    command = parser("build", __doc__ or "")
    command.add_argument("--rows", type=int, default=20_000_000)
    command.add_argument("--strings", type=int, default=100_000)
    size = "of the encoder (polybert: half an hour for 100,000 strings)"
    command.add_argument("--size", choices=("tiny", "polybert"), default="polybert", help=size)
    arguments = command.parse_args(words)
    if arguments.quick:
        arguments.rows, arguments.strings, arguments.size = 500_000, 2_000, "tiny"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_python(
            "-m", "jobs.make_encoder", "--out", str(folder / "encoder"), "--size", arguments.size
        )
        tell(f"now building a cache of {arguments.rows:,} rows")
        rows = build_rows(folder, arguments.rows)
        tell(f"now encoding {arguments.strings:,} strings, by one rank and by two")
        strings = encode_strings(folder, arguments.strings)
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick, "encoder": arguments.size}
    publish(output_path("build", arguments), found | {"rows": rows, "strings": strings}, report)


def build_rows(folder: Path, num_rows: int) -> dict[str, Any]:
    """Return what building a cache of this many rows takes."""
    table = folder / "rows.parquet"
    random_rows(num_rows).sink_parquet(table, row_group_size=ROW_GROUP)
    features = [
        {"column": f"x{number}", "low": -100, "high": 100} for number in range(NUM_FEATURES)
    ]
    data = {
        "path": str(table),
        "strings": [{"name": "polymer", "column": "smiles"}],
        "numeric": features,
        "categories": [{"column": "kind"}],
        "group": "group",
    }
    tasks = [{"name": "y", "column": "y"}, {"name": "good", "column": "good", "kind": "binary"}]
    used, cache = _build(
        folder, "rows", {"data": data, "tasks": tasks, "split": {"stratify_by": "good"}}
    )
    started = time.perf_counter()
    cache.verify()
    return {
        **used,
        "num_rows": num_rows,
        "num_strings": len(POLYMERS),
        "table_bytes": table.stat().st_size,
        "verify_s": time.perf_counter() - started,
    }


def random_rows(num_rows: int) -> pl.LazyFrame:
    """Return random rows that are made block by block while they are read."""
    schema = pl.Schema(
        {
            "smiles": pl.String,
            "kind": pl.String,
            "group": pl.Int32,
            "y": pl.Float32,
            "good": pl.Boolean,
            **{f"x{number}": pl.Float32 for number in range(NUM_FEATURES)},
        }
    )

    def blocks(
        columns: list[str] | None, predicate: Any, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        asked = (columns, predicate, limit)
        assert asked == (None, None, None), "the rows are written as they are made"
        generator = np.random.default_rng(0)
        for start in range(0, num_rows, ROW_GROUP):
            yield _row_group(start, min(ROW_GROUP, num_rows - start), schema, generator)

    return register_io_source(blocks, schema=schema)


def _row_group(
    start: int, num_rows: int, schema: pl.Schema, generator: np.random.Generator
) -> pl.DataFrame:
    x = generator.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    polymer = generator.integers(0, len(POLYMERS), num_rows)
    kind = generator.integers(0, 3, num_rows)
    columns = {
        "smiles": pl.Series(POLYMERS).gather(polymer),
        "kind": pl.Series(["a", "b", "c"]).gather(kind),
        "group": (start + np.arange(num_rows)) % NUM_GROUPS,
        "y": x[:, 0] + x[:, 1],
        "good": generator.random(num_rows) < 0.25,
        **{f"x{number}": x[:, number] for number in range(NUM_FEATURES)},
    }
    return pl.DataFrame(columns, schema=schema)


def encode_strings(folder: Path, num_strings: int) -> dict[str, Any]:
    """Return the rates at which one rank and two encode this many distinct strings."""
    texts = random_strings(num_strings)
    pl.DataFrame(
        {"smiles": texts, "y": np.random.default_rng(0).normal(size=num_strings)}
    ).write_parquet(folder / "strings.parquet")
    data = {
        "path": str(folder / "strings.parquet"),
        "strings": [{"name": "polymer", "column": "smiles"}],
    }
    config = {
        "data": data,
        "tasks": [{"name": "y", "column": "y"}],
        "split": {"strategy": "random"},
    }
    found, vectors = {}, {}
    for size in (1, 2):
        used, cache = _build(folder, f"strings{size}", config, size)
        seconds = cache.report["encoding"]["seconds"]
        found[str(size)] = {**used, "encoding_s": seconds, "strings_per_s": num_strings / seconds}
        vectors[size] = cache.strings("polymer").embeddings
    difference = float((vectors[1] - vectors[2]).abs().max() / vectors[1].abs().max())
    if difference > 1e-5:
        raise AssertionError(
            f"two ranks give other vectors than one: relative difference {difference:.1e}; no rate"
            " is reported"
        )
    num_tokens = cache.layout.strings[0].num_tokens
    return {
        "num_strings": num_strings,
        "num_tokens": num_tokens,
        "equal_bits": torch.equal(vectors[1], vectors[2]),
        "difference": difference,
        "ranks": found,
    }


def random_strings(num_strings: int) -> list[str]:
    """Return distinct random chains of fragments between two endpoints, all valid repeat units."""
    generator = np.random.default_rng(0)
    texts: set[str] = set()
    while len(texts) < num_strings:
        chosen = generator.integers(0, len(FRAGMENTS), generator.integers(3, 10))
        texts.add("[*]C" + "".join(FRAGMENTS[number] for number in chosen) + "C[*]")
    return sorted(texts)


def _build(
    folder: Path, name: str, config: dict[str, Any], num_ranks: int = 1
) -> tuple[dict[str, Any], Cache]:
    """Build a cache in processes of its own; return what it took, and the cache."""
    path = folder / f"{name}.zarr"
    file = folder / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {**config, "encoder": {"source": str(folder / "encoder")}, "cache": {"path": str(path)}}
        )
    )
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
        if num_ranks > 1
        else []
    )
    started = time.perf_counter()
    peak = run_python(*launcher, "-m", "jobs.build_cache", "--config", str(file)).peak_rss_bytes
    seconds = time.perf_counter() - started
    cache = open_cache(path)
    used = {
        "seconds": seconds,
        "phases_s": dict(cache.report["seconds"]),
        "cache_bytes": cache.num_bytes,
    }
    return {**used, "peak_rss_bytes": peak} if num_ranks == 1 else used, cache


def report(found: dict[str, Any]) -> Report:
    """Return what building takes by phase, and the rates at which ranks encode."""
    rows, strings = found["rows"], found["strings"]
    of_rows = (
        Column("rows", "num_rows"),
        Column("distinct strings", "num_strings"),
        Column("Parquet, MB", "table_bytes", megabytes),
        Column("cache, MB", "cache_bytes", megabytes),
        Column("build, s", "seconds", ",.1f"),
        Column("rows/s", lambda row: row["num_rows"] / row["seconds"], ",.0f"),
        Column("peak memory, GiB", "peak_rss_bytes", gib),
        Column("verify, s", "verify_s", ",.1f"),
    )
    of_ranks = (
        Column("ranks", "name"),
        Column("encoding, s", "encoding_s", ",.1f"),
        Column("strings/s", "strings_per_s", ",.0f"),
        Column("whole build, s", "seconds", ",.1f"),
    )
    phases = ", ".join(f"{phase} {seconds:,.1f} s" for phase, seconds in rows["phases_s"].items())
    by = f"to a relative {strings['difference']:.0e} (other thread counts add in another order)"
    equal = "bit for bit" if strings["equal_bits"] else by
    return Report(
        f"Building a cache of {rows['num_rows']:,} rows, and encoding {strings['num_strings']:,}"
        " distinct strings",
        (),
        (
            Table(of_rows, [rows]),
            f"Phases: {phases}; the rest is starting the process, hashing the table and"
            " publishing.",
            f"Encoding {strings['num_strings']:,} random repeat units, {strings['num_tokens']:,}"
            f" tokens, {found['encoder']} size, fp32, on the same cores:",
            Table(of_ranks, named(strings["ranks"])),
            f"One rank and two give the same vectors, {equal}.",
        ),
        (_phases_panel(rows), _rates_panel(found["encoder"], strings)),
    )


def _phases_panel(rows: dict[str, Any]) -> Panel:
    """Return where the time of a build goes."""
    rest = rows["seconds"] - sum(rows["phases_s"].values())
    after = {"start, hash, publish": rest, "verify (afterwards)": rows["verify_s"]}
    title = f"cache of {rows['num_rows']:,} rows, {rows['num_strings']} distinct strings"
    return Panel(title, "seconds", {**rows["phases_s"], **after})


def _rates_panel(encoder: str, strings: dict[str, Any]) -> Panel:
    """Return the rate at which ranks encode."""
    title = f"encoding {strings['num_strings']:,} strings, {encoder} size, on the same cores"
    rates = {
        f"{ranks} rank{'s' if int(ranks) > 1 else ''}": used["strings_per_s"]
        for ranks, used in strings["ranks"].items()
    }
    return Panel(title, "distinct strings per second", rates)
