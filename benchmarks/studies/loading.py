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
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.cells import Column, Table, gib, mib
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import world
from benchmarks.harness.workers import run_python
from benchmarks.studies.loading_table import stage1, write_table
from embedcache.cache.reader import open_cache
from fusionnet.rows.tensors import RowTable, row_bytes
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.step import optimizer_step
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.workflow.recipes import recipe_of

CASES = ("resident", "streaming")
SMALL = (
    "model.fusion_width=128",
    "model.feedforward=256",
    "model.num_layers=2",
    "model.adapter_hidden=128",
    "model.adapter_width=64",
)
GOALS = {"resident": 0.02, "streaming": 0.10}


def main(words: list[str]) -> None:
    """Make the table, time both cases in turn, and write benchmarks/results/loading.*."""
    command = parser("loading", __doc__ or "")
    add = partial(command.add_argument, type=int)
    add("--rows", default=4_000_000)
    add("--memory-mib", default=192, help="train.rows_memory_mib of the streamed case")
    add("--steps", default=40, help="optimizer steps timed per run")
    add("--batch-rows", default=8192, help="rows of a step")
    add("--repeats", default=3, help="runs of each case, taken in turn")
    command.add_argument("--network", choices=("stage1", "small"), default="stage1")
    command.add_argument("--worker", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    chosen = command.parse_args(words)
    if chosen.quick:
        vars(chosen).update(rows=200_000, memory_mib=8, steps=5, repeats=1, network="small")
    if chosen.worker is not None:
        print(json.dumps(measure(chosen.worker[0], Path(chosen.worker[1]), chosen)))
        return
    with tempfile.TemporaryDirectory() as folder:
        tell(f"now writing a table of {chosen.rows:,} rows")
        write_table(Path(folder) / "cache.zarr", chosen.rows, chosen.memory_mib)
        runs = [
            (case, in_own_process(case, folder, chosen))
            for _ in range(chosen.repeats)
            for case in CASES
        ]
    found = {**stamp(), "quick": chosen.quick, **summary(runs)}
    found |= {"memory_mib": chosen.memory_mib, "network": chosen.network}
    publish(output_path("loading", chosen), found, report)


def measure(case: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return seconds per step, the part spent waiting for rows, and memory, of one run here."""
    overrides = [f"train.rows={case}", f"train.batch_rows={chosen.batch_rows}"]
    if case == "streaming":
        overrides.append(f"train.rows_memory_mib={chosen.memory_mib}")
    experiment = stage1(folder, *overrides, *(SMALL if chosen.network == "small" else ()))
    cache = open_cache(experiment.cache.path)
    before = peak_rss_bytes()
    started = time.perf_counter()
    trainer = make_trainer(recipe_of(experiment, cache), experiment.optim, cache, world())
    opened = time.perf_counter() - started
    waits, steps = _timed_steps(trainer, chosen.steps + 2)
    # the first waits for the first buffer, the second warms up
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


def _timed_steps(trainer: Trainer, num_steps: int) -> tuple[list[float], list[float]]:
    """Return the seconds that each step waits for its rows, and those it takes in all."""
    trainer.model.train()
    waits, steps = [], []
    rows = _endless(trainer.train_rows, trainer.plan)
    for step in range(num_steps):
        started = time.perf_counter()
        batch = next(rows)
        waits.append(time.perf_counter() - started)
        trainer.engine.set_learning_rates(trainer.schedule.rates(step))
        parts = trainer.plan.micro_batches(batch.num_rows, 0)
        optimizer_step(trainer.engine, trainer.sources, batch, parts, 0, step)
        steps.append(time.perf_counter() - started)
    return waits, steps


def _endless(source: Any, plan: Any) -> Iterator[RowTable]:
    """Yield steps of one epoch after another, as training reads them."""
    epoch = 0
    while True:
        yield from source.steps(plan, epoch)
        epoch += 1
        source.prepare(plan, epoch)


def summary(runs: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the median run of each case, and streaming's speed over the resident run before it."""
    cases: dict[str, Any] = {}
    for case in CASES:
        own = [run for name, run in runs if name == case]
        keys = [key for key in own[0] if key != "order"]
        cases[case] = {key: statistics.median(run[key] for run in own) for key in keys}
        rates = [run["rows_per_s"] for run in own]
        cases[case] |= {"order": own[0]["order"], "rows_per_s_of_runs": rates}
    speeds = zip(*(cases[case]["rows_per_s_of_runs"] for case in CASES), strict=True)
    ratios = [streaming / resident for resident, streaming in speeds]
    return {"cases": cases, "streaming_over_resident": statistics.median(ratios), "ratios": ratios}


def in_own_process(case: str, folder: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what `measure` returns in a process of its own, whose peak memory is the case's."""
    tell(f"now measuring {chosen.steps} steps, {case}")
    words = ("-m", "benchmarks", "loading", "--worker", case, folder, "--network", chosen.network)
    sizes = ("--memory-mib", str(chosen.memory_mib), "--steps", str(chosen.steps))
    batch = ("--batch-rows", str(chosen.batch_rows))
    return json.loads(run_python(*words, *sizes, *batch).output.strip().splitlines()[-1])


def report(found: dict[str, Any]) -> Report:
    """Return what each way to feed rows costs in time and memory."""
    cases, ratios = found["cases"], found["ratios"]
    resident = cases["resident"]
    table_mib = resident["table_bytes"] / 2**20
    columns = (
        Column("rows", "order"),
        Column("loading, share of a step", "loading_share", ".2%"),
        Column("at most", "goal", ".0%"),
        Column("longest wait, s", "longest_wait_s", ".3f"),
        Column("rows/s", "rows_per_s", ",.0f"),
        Column("peak GiB", "peak_rss_bytes", gib),
        Column("of which rows, MiB", "added_rss_bytes", mib),
        Column("opening, s", "open_s", ".1f"),
        Column("first step's rows, s", "first_rows_s", ".2f"),
    )
    reached = (
        f"Streaming reaches {found['streaming_over_resident']:.1%} of the resident speed"
        f" ({min(ratios):.1%} to {max(ratios):.1%}; goal 90%) with"
        f" train.rows_memory_mib={found['memory_mib']}."
    )
    how = (
        f"Network {found['network']}, frozen vectors, fp32, {len(ratios)} runs of each in turn,"
        " medians."
    )
    return Report(
        f"Feeding rows: {resident['num_rows']:,.0f} rows of Stage 1's columns"
        f" ({table_mib:,.0f} MiB)",
        (how,),
        (Table(columns, [{**cases[case], "goal": goal} for case, goal in GOALS.items()]), reached),
        _panels(cases, table_mib),
    )


def _panels(cases: dict[str, Any], table_mib: float) -> tuple[Panel, ...]:
    """Return waiting, speed and memory of each case."""
    waiting = {case: 100 * run["loading_share"] for case, run in cases.items()}
    speed = {}
    for case, run in cases.items():
        rates = run["rows_per_s_of_runs"]
        speed[case] = (run["rows_per_s"], min(rates), max(rates))
    memory = {case: run["added_rss_bytes"] / 2**20 for case, run in cases.items()}
    goals = {f"goal, {case}": 100 * goal for case, goal in GOALS.items()}
    return (
        Panel("waiting for rows", "share of a step, %", waiting, goals),
        Panel("training", "rows per second (lines: all runs)", speed),
        Panel("memory for rows", "MiB", memory, {"the table": table_mib}),
    )
