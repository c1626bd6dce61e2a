"""Phase 1 at size: many rows of few strings, and many strings on one rank and two.

Rows. A Parquet of random rows is generated in row groups, never held; the cache is built from it in
a process of its own, whose peak memory the kernel reports. Strings. As many random valid polymer
strings, one row each, are encoded by one rank and by two on the same cores; before rates are
reported, both must give the same vectors.
"""

import os
import subprocess
import sys
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

from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import UserError

REPOSITORY = Path(__file__).parents[2]
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
    """Measure both parts and write benchmarks/results/build.json and .md."""
    # quick: 500,000 rows, and 2,000 strings of a tiny encoder
    command = parser("build", __doc__ or "")
    command.add_argument("--rows", type=int, default=20_000_000)
    command.add_argument("--strings", type=int, default=100_000)
    command.add_argument(
        "--size",
        choices=("tiny", "polybert"),
        default="polybert",
        help="of the encoder (polybert: half an hour for 100,000 strings)",
    )
    arguments = command.parse_args(words)
    num_rows, num_strings, size = (
        (500_000, 2_000, "tiny")
        if arguments.quick
        else (arguments.rows, arguments.strings, arguments.size)
    )
    with tempfile.TemporaryDirectory() as folder:
        _run("-m", "jobs.make_encoder", "--out", f"{folder}/encoder", "--size", size)
        found: dict[str, Any] = {
            **stamp(),
            "quick": arguments.quick,
            "encoder": size,
            "rows": build_rows(Path(folder), num_rows),
            "strings": encode_strings(Path(folder), num_strings),
        }
    publish(output_path("build", arguments), found, as_markdown, draw)


def build_rows(folder: Path, num_rows: int) -> dict[str, Any]:
    """Return what building a cache of this many rows takes."""
    table = folder / "rows.parquet"
    random_rows(num_rows).sink_parquet(table, row_group_size=ROW_GROUP)
    features = [{"column": f"x{k}", "low": -100, "high": 100} for k in range(NUM_FEATURES)]
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
    numeric = {f"x{k}": pl.Float32 for k in range(NUM_FEATURES)}
    schema = pl.Schema(
        {
            "smiles": pl.String,
            "kind": pl.String,
            "group": pl.Int32,
            "y": pl.Float32,
            "good": pl.Boolean,
            **numeric,
        }
    )

    def blocks(
        columns: list[str] | None, predicate: Any, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        assert (columns, predicate, limit) == (
            None,
            None,
            None,
        ), "the rows are written as they are made"
        rng = np.random.default_rng(0)
        for start in range(0, num_rows, ROW_GROUP):
            n = min(ROW_GROUP, num_rows - start)
            x = rng.normal(size=(n, NUM_FEATURES)).astype(np.float32)
            yield pl.DataFrame(
                {
                    "smiles": pl.Series(POLYMERS).gather(rng.integers(0, len(POLYMERS), n)),
                    "kind": pl.Series(["a", "b", "c"]).gather(rng.integers(0, 3, n)),
                    "group": (start + np.arange(n)) % NUM_GROUPS,
                    "y": x[:, 0] + x[:, 1],
                    "good": rng.random(n) < 0.25,
                    **{f"x{k}": x[:, k] for k in range(NUM_FEATURES)},
                },
                schema=schema,
            )

    return register_io_source(blocks, schema=schema)


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
    """Return distinct random chains of fragments between two endpoints: all of them valid repeat
    units.
    """
    rng, texts = np.random.default_rng(0), set()
    while len(texts) < num_strings:
        texts.add(
            "[*]C"
            + "".join(FRAGMENTS[k] for k in rng.integers(0, len(FRAGMENTS), rng.integers(3, 10)))
            + "C[*]"
        )
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
    peak = _run(*launcher, "-m", "jobs.build_cache", "--config", str(file))
    seconds = time.perf_counter() - started
    cache = open_cache(path)
    used = {
        "seconds": seconds,
        "phases_s": dict(cache.report["seconds"]),
        "cache_bytes": cache.num_bytes,
    }
    return {**used, "peak_rss_bytes": peak} if num_ranks == 1 else used, cache


def _run(*words: str) -> int:
    """Run a command of this project; return the peak memory of its process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise UserError(f"{' '.join(words[:6])} failed:\n{errors.read()[-3000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables."""
    rows, strings = found["rows"], found["strings"]
    phases = ", ".join(f"{phase} {seconds:,.1f} s" for phase, seconds in rows["phases_s"].items())
    lines = [
        (
            f"# Building a cache of {rows['num_rows']:,} rows, and encoding"
            f" {strings['num_strings']:,} distinct strings"
        ),
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['hardware']['cores']} cores."
        ),
        "",
        (
            "| rows | distinct strings | Parquet, MB | cache, MB | build, s | rows/s | peak memory,"
            " GiB | verify, s |"
        ),
        "|---|---|---|---|---|---|---|---|",
        (
            f"| {rows['num_rows']:,} | {rows['num_strings']} | {rows['table_bytes'] / 1e6:,.0f} |"
            f" {rows['cache_bytes'] / 1e6:,.0f} | {rows['seconds']:,.1f} |"
            f" {rows['num_rows'] / rows['seconds']:,.0f} | {rows['peak_rss_bytes'] / 2**30:.2f} |"
            f" {rows['verify_s']:,.1f} |"
        ),
        "",
        f"Phases: {phases}; the rest is starting the process, hashing the table and publishing.",
        "",
        (
            f"Encoding {strings['num_strings']:,} random repeat units, {strings['num_tokens']:,}"
            f" tokens, {found['encoder']} size, fp32, on the same cores:"
        ),
        "",
        "| ranks | encoding, s | strings/s | whole build, s |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {n} | {used['encoding_s']:,.1f} | {used['strings_per_s']:,.0f} |"
        f" {used['seconds']:,.1f} |"
        for n, used in strings["ranks"].items()
    ]
    equal = (
        "bit for bit"
        if strings["equal_bits"]
        else (
            f"to a relative {strings['difference']:.0e} (other thread counts add up in another"
            " order)"
        )
    )
    return "\n".join([*lines, "", f"One rank and two give the same vectors, {equal}."]) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw where the time of a build goes, and the rate at which ranks encode."""
    rows, strings = found["rows"], found["strings"]
    rest = rows["seconds"] - sum(rows["phases_s"].values())
    phases = {
        **rows["phases_s"],
        "start, hash, publish": rest,
        "verify (afterwards)": rows["verify_s"],
    }
    rates = {
        f"{n} rank{'s' if int(n) > 1 else ''}": used["strings_per_s"]
        for n, used in strings["ranks"].items()
    }
    panels = [
        Panel(
            f"cache of {rows['num_rows']:,} rows, {rows['num_strings']} distinct strings",
            "seconds",
            phases,
        ),
        Panel(
            f"encoding {strings['num_strings']:,} strings, {found['encoder']} size, on the same"
            " cores",
            "distinct strings per second",
            rates,
        ),
    ]
    draw_bars(path, panels)
