"""What feeding rows costs: the share of an optimizer step spent waiting for them, resident and
streamed, and the memory that streaming takes.

The table is made by the cache writer itself: random numbers in the columns of configs/stage1.yaml,
several million rows. Each case runs in a process of its own, so that its peak memory is its own. A
step is timed with the network of Stage 1, or with a smaller one (`--network small`), where loading
weighs more. Streaming is given a buffer far smaller than the table; reading competes with training
for the same cores, which is why its speed is compared as a whole.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.layout import Layout, RowBlock, StringSpec, StringTable
from embedcache.cache.reader import open_cache
from embedcache.cache.writer import StoreWriter
from embedcache.config import CacheConfig, EncoderConfig
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import UserError
from embedcache.scaling import Scaling
from embedcache.table.strings import text_hashes
from fusionnet.assemble import Recipe, observed_tasks
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.rows.tensors import RowTable, row_bytes
from fusionnet.train.engine import World
from fusionnet.train.loop import make_trainer
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.step import optimizer_step

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = ("resident", "streaming")
SMALL = (
    "model.fusion_width=128",
    "model.feedforward=256",
    "model.num_layers=2",
    "model.adapter_hidden=128",
    "model.adapter_width=64",
)
NUM_STRINGS, WIDTH, ROWS_PER_PATIENT = 21, 600, 7458
STRINGS = [f"[*]{'C' * (k + 1)}[*]" for k in range(NUM_STRINGS)]
GOALS = {"resident": 0.02, "streaming": 0.10}


def main(arguments: list[str]) -> None:
    """Make the table, time both cases in turn, write results/loading.json and .md."""
    command = parser("loading", __doc__ or "")
    command.add_argument("--rows", type=int, default=4_000_000)
    command.add_argument(
        "--memory-mib", type=int, default=192, help="train.rows_memory_mib of the streamed case"
    )
    command.add_argument("--steps", type=int, default=40, help="optimizer steps timed per run")
    command.add_argument("--repeats", type=int, default=3, help="runs of each case, taken in turn")
    command.add_argument("--network", choices=("stage1", "small"), default="stage1")
    command.add_argument(
        "--worker", nargs=2, metavar=("CASE", "FOLDER"), default=None, help=argparse.SUPPRESS
    )
    chosen = command.parse_args(arguments)
    if chosen.quick:
        chosen.rows, chosen.memory_mib, chosen.steps, chosen.repeats, chosen.network = (
            200_000,
            8,
            5,
            1,
            "small",
        )
    if chosen.worker is not None:
        print(json.dumps(measure(chosen.worker[0], Path(chosen.worker[1]), chosen)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "cache.zarr", chosen.rows, chosen.memory_mib)
        runs = [
            (case, _in_own_process(case, folder, chosen))
            for _ in range(chosen.repeats)
            for case in CASES
        ]
    found = {
        **stamp(),
        "quick": chosen.quick,
        **summary(runs),
        "memory_mib": chosen.memory_mib,
        "network": chosen.network,
    }
    publish(output_path("loading", chosen), found, as_markdown, draw)


def stage1(folder: Path, *overrides: str) -> Experiment:
    """Return the experiment whose columns the table has, without encoder."""
    fixed = (
        f"cache.path={folder / 'cache.zarr'}",
        "encoder.mode=frozen",
        "encoder.source=none",
        "train.precision=fp32",
    )
    return load_experiment(REPOSITORY / "configs" / "stage1.yaml", [*fixed, *overrides])


def write_table(path: Path, num_rows: int, memory_mib: int) -> None:
    """Write a cache of random rows; a chunk is small enough for 16 of them to a buffer."""
    experiment = stage1(path.parent)
    spec = StringSpec(
        name="polymer",
        column="polymer_SMILES",
        kind="psmiles",
        num_strings=NUM_STRINGS,
        width=WIDTH,
        num_tokens=3 * NUM_STRINGS,
        pooling="cls",
        encoder=EncoderConfig(),
        encoding="random",
        standin=True,
    )
    layout = Layout(
        num_rows=num_rows,
        strings=(spec,),
        numeric=experiment.data.numeric,
        categories=(("polymer_category", tuple("abcdefgh")),),
        targets=experiment.targets,
        absent_targets=(),
        groups=(),
        strata=(),
        facets=(),
    )
    rows_per_chunk = min(65_536, (memory_mib << 20) // (36 * row_bytes(layout)))
    writer = StoreWriter(path, layout, CacheConfig(path=str(path), rows_per_chunk=rows_per_chunk))
    generator = np.random.default_rng(0)
    tokens = TokenTable(
        torch.ones(3 * NUM_STRINGS, dtype=torch.int64), torch.arange(0, 3 * NUM_STRINGS + 1, 3)
    )
    embeddings = torch.from_numpy(generator.normal(size=(NUM_STRINGS, WIDTH)).astype(np.float32))
    writer.add_strings(
        "polymer", StringTable(STRINGS, tokens, embeddings, torch.ones(NUM_STRINGS).long())
    )
    for start in tqdm(range(0, num_rows, writer.rows_per_block), desc="write rows", disable=None):
        writer.add_rows(
            random_rows(layout, start, min(writer.rows_per_block, num_rows - start), generator)
        )
    num_numeric, num_targets = len(layout.numeric), len(layout.targets)
    scaling = Scaling(
        columns=tuple(column.column for column in layout.numeric),
        transforms=tuple(column.transform for column in layout.numeric),
        mean=(0.0,) * num_numeric,
        std=(1.0,) * num_numeric,
        target_mean=(0.0,) * num_targets,
        target_std=(1.0,) * num_targets,
        positive_rate={"opt": 0.24},
    )
    writer.finish(scaling)
    attributes = {
        "format_version": FORMAT_VERSION,
        "identity": {},
        "layout": layout.model_dump(mode="json"),
        "provenance": {},
        "report": {},
    }
    manifest.seal(path, attributes)


def random_rows(
    layout: Layout, start: int, num_rows: int, generator: np.random.Generator
) -> RowBlock:
    """Return rows of patients that follow one another; every tenth patient validates."""
    patient = (start + np.arange(num_rows)) // ROWS_PER_PATIENT
    targets = generator.normal(size=(num_rows, len(layout.targets))).astype(np.float32)
    binary = [number for number, target in enumerate(layout.targets) if target.kind == "binary"]
    targets[:, binary] = targets[:, binary] > 0.7
    string_id = generator.integers(0, NUM_STRINGS, (num_rows, 1), dtype=np.int32)
    return RowBlock(
        string_id=string_id,
        string_hash=text_hashes(STRINGS)[string_id],
        numeric=np.abs(generator.normal(size=(num_rows, len(layout.numeric)))).astype(np.float32)
        + 0.1,
        category=generator.integers(0, 8, (num_rows, 1), dtype=np.int32),
        targets=targets,
        weight=np.where(patient % 6 == 0, 5, 1).astype(np.float32),
        group=np.full(num_rows, -1, dtype=np.int32),
        stratum=np.full(num_rows, -1, dtype=np.int32),
        split=(patient % 10 == 0).astype(np.int8),
        facets=np.zeros((num_rows, 0), dtype=np.int32),
    )


def measure(case: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return seconds per step, the part of them spent waiting for rows, and memory, of one run in
    this process.
    """
    overrides = [
        f"train.rows={case}",
        *([f"train.rows_memory_mib={chosen.memory_mib}"] if case == "streaming" else []),
    ]
    experiment = stage1(folder, *overrides, *(SMALL if chosen.network == "small" else ()))
    cache = open_cache(experiment.cache.path)
    recipe = Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        (experiment.encoder,),
        experiment.model,
        experiment.loss,
        experiment.train,
    )
    before = peak_rss_bytes()
    started = time.perf_counter()
    trainer = make_trainer(recipe, experiment.optim, cache, World())
    opened = time.perf_counter() - started
    trainer.model.train()
    waits, steps = [], []
    rows = _endless(trainer.train_rows, trainer.plan)
    # the first waits for the first buffer, the second warms up
    for step in range(chosen.steps + 2):
        started = time.perf_counter()
        batch = next(rows)
        loaded = time.perf_counter()
        trainer.engine.set_learning_rates(trainer.schedule.rates(step))
        local = torch.arange(batch.num_rows)
        optimizer_step(
            trainer.engine, trainer.sources, batch, trainer.plan.micro_batches(local, 0), 0, step
        )
        waits.append(loaded - started)
        steps.append(time.perf_counter() - started)
    return {
        "step_s": statistics.median(steps[2:]),
        "loading_share": sum(waits[2:]) / sum(steps[2:]),
        "longest_wait_s": max(waits[2:]),
        "rows_per_s": trainer.plan.step_sizes[0] * chosen.steps / sum(steps[2:]),
        "first_rows_s": waits[0],
        "open_s": opened,
        "peak_rss_bytes": peak_rss_bytes(),
        "added_rss_bytes": peak_rss_bytes() - before,
        "table_bytes": cache.layout.num_rows * row_bytes(cache.layout),
        "num_rows": cache.layout.num_rows,
        "order": trainer.train_rows.order,
    }


def _endless(source: Any, plan: Any) -> Iterator[RowTable]:
    """Yield steps of one epoch after another, as training reads them."""
    epoch = 0
    while True:
        yield from source.steps(plan, epoch)
        epoch += 1
        source.prepare(plan, epoch)


def summary(runs: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the median run of each case, streaming's speed over that of the resident run taken
    just before it, and the verdicts.
    """
    cases: dict[str, Any] = {}
    for case in CASES:
        own = [run for name, run in runs if name == case]
        numbers = {
            key: statistics.median(run[key] for run in own) for key in own[0] if key != "order"
        }
        cases[case] = {
            **numbers,
            "order": own[0]["order"],
            "rows_per_s_of_runs": [run["rows_per_s"] for run in own],
        }
    ratios = [
        streaming / resident
        for streaming, resident in zip(
            *(cases[case]["rows_per_s_of_runs"] for case in CASES[::-1]), strict=True
        )
    ]
    return {"cases": cases, "streaming_over_resident": statistics.median(ratios), "ratios": ratios}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    cases = found["cases"]
    lines = [
        (
            f"# Feeding rows: {cases['resident']['num_rows']:,.0f} rows of Stage 1's columns"
            f" ({cases['resident']['table_bytes'] / 2**20:,.0f} MiB)"
        ),
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['hardware']['cores']} cores, network"
            f" {found['network']}, frozen vectors, fp32, {len(found['ratios'])} runs of each in"
            " turn, medians."
        ),
        "",
        (
            "| rows | loading, share of a step | at most | longest wait, s | rows/s | peak GiB | of"
            " which rows, MiB | opening, s | first step's rows, s |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, goal in GOALS.items():
        run = cases[case]
        lines.append(
            f"| {run['order']} | {run['loading_share']:.2%} | {goal:.0%} |"
            f" {run['longest_wait_s']:.3f} | {run['rows_per_s']:,.0f} |"
            f" {run['peak_rss_bytes'] / 2**30:.2f} | {run['added_rss_bytes'] / 2**20:,.0f} |"
            f" {run['open_s']:.1f} | {run['first_rows_s']:.2f} |"
        )
    ratios = found["ratios"]
    reached = (
        f"Streaming reaches {found['streaming_over_resident']:.1%} of the resident speed"
        f" ({min(ratios):.1%} to {max(ratios):.1%}; goal 90%)"
    )
    return (
        "\n".join([*lines, "", f"{reached} with train.rows_memory_mib={found['memory_mib']}."])
        + "\n"
    )


def _in_own_process(case: str, folder: str, chosen: argparse.Namespace) -> dict[str, Any]:
    words = [
        "-m",
        "benchmarks",
        "loading",
        "--worker",
        case,
        folder,
        "--memory-mib",
        str(chosen.memory_mib),
        "--steps",
        str(chosen.steps),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--network", chosen.network],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"the {case} run failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw what each way to feed rows costs in time and memory."""
    cases = found["cases"]
    waiting = Panel(
        "waiting for rows",
        "share of a step, %",
        {case: 100 * run["loading_share"] for case, run in cases.items()},
        {f"goal, {case}": 100 * goal for case, goal in GOALS.items()},
    )
    speed = {
        case: (run["rows_per_s"], min(run["rows_per_s_of_runs"]), max(run["rows_per_s_of_runs"]))
        for case, run in cases.items()
    }
    memory = {case: run["added_rss_bytes"] / 2**20 for case, run in cases.items()}
    size = cases["resident"]["table_bytes"] / 2**20
    panels = [
        waiting,
        Panel("training", "rows per second (lines: all runs)", speed),
        Panel("memory for rows", "MiB", memory, {"the table": size}),
    ]
    draw_bars(path, panels)
