"""One optimizer step on a GPU, in every mode, taken from Python and replayed from a CUDA graph.

All modes live in one process, take the steps that training takes and have their turns in rounds: as
many steps one after another as a turn has, and one wait at its end. Nothing is extended from
smaller steps. What a replay and a step from Python consist of is read off torch's profiler, and the
network's rows per second in evaluation stand beside.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.cells import Column, Table, named, times, with_spread
from benchmarks.harness.pictures import draw_rates
from benchmarks.harness.publish import Report, machine, output_path, parser, publish, tell
from benchmarks.harness.setting import SMALL_NETWORK, experiment_of, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import MODES, world
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from embedcache.cache.reader import open_cache
from fusionnet.model.forward import forward_rows
from fusionnet.rows.resident import ResidentRows
from fusionnet.train.loop import string_tables
from fusionnet.train.trainer import Trainer, make_trainer
from fusionnet.workflow.recipes import recipe_of

TIMED = ("naive_128", "naive_longest", "per_microbatch", "per_step", "prefix", "frozen")
CAPTURED = ("per_step", "prefix", "frozen")
GRAPH = "graph"
SHOWN = 24  # kernels in the table


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    encoder: str
    rows_per_patient: int
    batch_rows: int
    naive_rows: int  # of a naive micro-batch
    rounds: int
    steps: int  # of a turn; a naive turn has one
    evaluated: int  # rows
    eval_batches: tuple[int, ...]
    overrides: tuple[str, ...] = ()


FULL = Size("polybert", 390, 8192, 256, 3, 20, 1_000_000, (8192, 65_536, 262_144))
TINY = Size(
    *("tiny", 24, 64, 16, 2, 2, 2000, (512,)), overrides=(*SMALL_NETWORK, "train.cpu_threads=1")
)


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/gpu_<precision>.json, .md and .png."""
    options = parser("gpu", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    every = _modes()
    options.add_argument("--modes", nargs="+", choices=every, default=every, metavar="MODE")
    arguments = options.parse_args(words)
    size = TINY if arguments.quick else FULL
    found = run(size, arguments.precision, arguments.modes)
    found["quick"] = arguments.quick
    publish(output_path(f"gpu_{arguments.precision}", arguments), found, report)


def run(size: Size, precision: str, modes: Sequence[str]) -> dict[str, Any]:
    """Return seconds of a step and peak memory by mode, profiles, and evaluated rows per second.

    per_step is among the modes, from Python or from a graph.
    """
    found: dict[str, Any] = {**stamp(), "precision": precision, "encoder": size.encoder}
    found |= {"batch_rows": size.batch_rows, "rounds": size.rounds, "steps": size.steps}
    with tempfile.TemporaryDirectory() as name:
        tell("now making the setting")
        make_setting(Path(name), size.encoder, size.rows_per_patient, overrides=size.overrides)
        runners = {}
        for mode in modes:
            tell(f"now making {mode}")
            runners[mode] = Runner(Path(name), mode, precision, size)
        tell("now taking turns")
        turns = {mode: runner.turn for mode, runner in runners.items()}
        seconds = interleaved(turns, size.rounds, tell)
        live = [mode for mode in (f"per_step {GRAPH}", "per_step") if mode in runners]
        ours = live[0]
        found["ours"] = ours
        found["rows_per_step"] = runners[ours].trainer.plan.step_sizes[0]
        found["modes"] = {
            mode: {
                "step_s": spread(own),
                "peak_bytes": runners[mode].peak_bytes,
                "ready_s": runners[mode].ready_s,
                "ours_is_faster_by": paired_ratio(own, seconds[ours]),
            }
            for mode, own in seconds.items()
        }
        tell("now profiling")
        found["profiles"] = {mode: profiled(runners[mode], size) for mode in live}
        tell("now evaluating")
        found["evaluation"] = evaluated(runners[ours].trainer, size)
    return found


def _modes() -> list[str]:
    """Return the modes that this machine can run, those of a graph last."""
    captured = [f"{mode} {GRAPH}" for mode in CAPTURED] if torch.cuda.is_available() else []
    return [*TIMED, *captured]


class Runner:
    """A trainer in one mode that takes steps, epoch after epoch."""

    def __init__(self, folder: Path, name: str, precision: str, size: Size) -> None:
        """Take two steps: what is compiled, chosen or captured is then behind it."""
        mode_name, _, how = name.partition(" ")
        mode = MODES[mode_name]
        self._steps_per_turn = 1 if mode.is_naive else size.steps
        experiment = experiment_of(folder, mode.encoding, precision, size.overrides)
        cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, cache)
        settings = {
            "batch_rows": size.batch_rows,
            "micro_batch_rows": size.naive_rows if mode.is_naive else None,
            "cuda_graph": how == GRAPH,
        }
        recipe = replace(recipe, train=recipe.train.model_copy(update=settings))
        before = _allocated()
        started = time.perf_counter()
        self.trainer = make_trainer(recipe, experiment.optim, cache, world(), pad_to=mode.pad_to)
        self.trainer.model.train()
        self._steps = self._endless()
        for _ in range(2):
            next(self._steps)
        self.ready_s = time.perf_counter() - started
        self.peak_bytes = _peak() - before

    def turn(self) -> float:
        """Return the mean seconds of a step, of as many as a turn has."""
        return self.take(self._steps_per_turn) / self._steps_per_turn

    def take(self, num_steps: int) -> float:
        """Take steps and return their seconds."""
        _settle()
        started = time.perf_counter()
        for _ in range(num_steps):
            next(self._steps)
        _settle()
        return time.perf_counter() - started

    def _endless(self) -> Iterator[None]:
        epoch = 0
        while True:
            for _ in self.trainer.steps.of_epoch(epoch):
                yield
            epoch += 1


def profiled(runner: Runner, size: Size) -> dict[str, Any]:
    """Return the kernels of a step by name, how many there are, and the GPU's busy share."""
    plain = runner.take(size.steps) / size.steps
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    num = min(5, size.steps)
    with profile(activities=activities) as profiler:
        runner.take(num)
    kernels: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0.0, "seconds": 0.0})
    asked: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            kernels[event.name]["calls"] += 1 / num
            kernels[event.name]["seconds"] += event.self_device_time_total / 1e6 / num
        elif event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")):
            asked["launches"] += 1 / num
        elif event.name.endswith("Synchronize"):
            asked["waits"] += 1 / num
    busy = sum(kernel["seconds"] for kernel in kernels.values())
    return {
        "step_s": plain,
        "kernels_per_step": sum(kernel["calls"] for kernel in kernels.values()),
        "kernel_s": busy,
        "busy_share": busy / plain,
        **asked,
        "kernels": dict(sorted(kernels.items(), key=lambda item: -item[1]["seconds"])),
    }


def evaluated(trainer: Trainer, size: Size) -> dict[str, float]:
    """Return the rows per second of the heads' outputs, by rows of a batch."""
    assert isinstance(trainer.validation_rows, ResidentRows)
    table, tables = trainer.validation_rows.table, string_tables(trainer)
    index = torch.arange(size.evaluated, device=table.weight.device) % table.num_rows
    rows = table.take(index)
    rates = {}
    for batch_rows in size.eval_batches:
        for _ in range(2):  # the first warms up
            _settle()
            started = time.perf_counter()
            forward_rows(trainer.model, tables, rows, batch_rows)
            _settle()
            seconds = time.perf_counter() - started
        rates[str(batch_rows)] = size.evaluated / seconds
    return rates


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _allocated() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def report(found: dict[str, Any]) -> Report:
    """Return the modes' steps, what a step consists of, and evaluation's rows per second."""
    ours = found["ours"]
    of_modes = (
        Column("mode", _what),
        Column("step, ms", lambda row: {k: 1e3 * v for k, v in row["step_s"].items()}, with_spread),
        Column("rows/s", lambda row: found["rows_per_step"] / row["step_s"]["median"], ",.0f"),
        Column(f"{ours} is faster by", lambda row: row["ours_is_faster_by"]["median"], times),
        Column("peak GiB", lambda row: row["peak_bytes"] / 2**30, ".2f"),
        Column("first two steps, s", "ready_s", ".1f"),
    )
    of_kernels = (
        Column("kernel", lambda row: f"`{row['name'][:70]}`"),
        Column("us", lambda row: 1e6 * row["seconds"], ",.1f"),
        Column("calls", "calls", ",.0f"),
    )
    blocks: list[str | Table] = [Table(of_modes, named(found["modes"]))]
    for mode, own in found["profiles"].items():
        blocks += [
            f"A step of {mode}: {own['kernels_per_step']:,.0f} kernels take"
            f" {1e3 * own['kernel_s']:.2f} ms of {1e3 * own['step_s']:.2f} ms"
            f" ({own['busy_share']:.0%}); the driver is asked for {own.get('launches', 0):,.0f}"
            f" launches and {own.get('waits', 0):,.1f} waits.",
            Table(of_kernels, named(own["kernels"])[:SHOWN]),
        ]
    rates = ", ".join(f"{rate:,.0f} at {batch}" for batch, rate in found["evaluation"].items())
    blocks.append(f"Evaluation, rows per second by rows of a batch: {rates}.")
    return Report(
        f"One optimizer step of {found['rows_per_step']:,} rows on one device,"
        f" {found['encoder']} size, {found['precision']}",
        (
            f"Modes take turns in {found['rounds']} rounds, {found['steps']} steps a turn (naive:"
            " one); medians, in brackets the 20th and 80th percentile.",
        ),
        blocks,
        (partial(_draw, found),),
        size=(6.5, 3.8),
    )


def _what(row: dict[str, Any]) -> str:
    name, _, how = row["name"].partition(" ")
    return f"{row['name']}: {MODES[name].what}{', replayed' if how else ''}"


def _draw(found: dict[str, Any], axes: Any) -> None:
    """Draw rows per second of each mode."""
    rates = {
        mode: found["rows_per_step"] / own["step_s"]["median"]
        for mode, own in found["modes"].items()
    }
    unit = f"rows per second (log scale), {found['precision']}\n{machine(found)}"
    draw_rates(axes, rates, (found["ours"],), unit)
