"""One optimizer step at full size: naive per-row encoding against encoding each distinct string
once.

Each mode has a process of its own, on the same cohort, encoder, LoRA, precision and optimizer step;
the processes take turns, round after round. Before anything is timed, the gradients of the modes
are compared with the naive ones (dropout off, fp32). Naive steps of the full size would take up to
half an hour each, so naive time is measured on three smaller steps and extended along the line
through the outer two; how far the middle one is off that line is reported. Everything else is
measured on whole steps.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.cells import Column, Table, gib, named, number, times, with_spread
from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.pictures import PHASE_COLORS, draw_rates
from benchmarks.harness.publish import Report, machine, output_path, parser, publish, tell
from benchmarks.harness.setting import SMALL_NETWORK, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import MODES, Stepper, batch_of, world
from benchmarks.harness.timing import PHASES, interleaved
from benchmarks.harness.workers import Worker
from benchmarks.speedup import derive, summary
from fusionnet.train.runlog import peak_rss_bytes

HOW = (
    "Modes take turns in rounds; medians, in brackets the 20th and 80th percentile. Ratios are"
    " taken within rounds. Naive steps are extended along a line from small ones; 'off the line' is"
    " the error of the step between them."
)


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    encoder: str
    rows_per_patient: int
    batch_rows: int
    naive_rows: tuple[int, int, int]  # rows of the naive steps, in micro-batches of the first
    rounds: int
    overrides: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


FULL = Size("polybert", 240, 8192, (32, 64, 96), 5)
QUICK = Size("middle", 24, 1024, (32, 64, 96), 2, left_out=("naive_compiled",))
# for the tests
TINY = Size(
    "tiny",
    24,
    64,
    (4, 8, 12),
    2,
    (*SMALL_NETWORK, "train.cpu_threads=1"),
    ("naive_compiled", "naive_bucketed", "prefix"),
)


def main(words: list[str]) -> None:
    """Measure all modes and write benchmarks/results/throughput_<precision>.json, .md and .png."""
    options = parser("throughput", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    found = run(QUICK if arguments.quick else FULL, arguments.precision)
    found["quick"] = arguments.quick
    publish(output_path(f"throughput_{arguments.precision}", arguments), found, report)


def run(size: Size, precision: str) -> dict[str, Any]:
    """Return the measured and derived numbers of all modes."""
    modes = [
        name
        for name, mode in MODES.items()
        if mode.precision != precision and name not in size.left_out
    ]
    found: dict[str, Any] = {
        **stamp(),
        "precision": precision,
        "encoder": size.encoder,
        "batch_rows": size.batch_rows,
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        tell("now making the setting and comparing gradients")
        make_setting(Path(name), size.encoder, size.rows_per_patient, overrides=size.overrides)
        found["gradient_error"] = gradient_errors(Path(name), overrides=size.overrides)
        tell("gradients agree; now starting one process per mode")
        spec = {
            "folder": name,
            "precision": precision,
            "batch_rows": size.batch_rows,
            "naive_rows": size.naive_rows,
            "overrides": size.overrides,
        }
        workers = {
            mode: stack.enter_context(Worker("benchmarks.throughput:Turn", {**spec, "mode": mode}))
            for mode in modes
        }
        peaks = {mode: worker.ready for mode, worker in workers.items()}
        asks = {mode: worker.ask for mode, worker in workers.items()}
        turns = interleaved(asks, size.rounds, tell)
    found["modes"] = {mode: summary(turns[mode], peaks[mode], size.batch_rows) for mode in modes}
    derive(found)
    return found


class Turn:
    """A worker's work: one step in its mode, or for naive modes one step of each of three sizes."""

    def __init__(self, spec: dict[str, Any], draw: Callable[[int], Tensor] | None = None) -> None:
        """Make the steppers and let each take a first step; `draw` gives rows their strings.

        The first step warms up, compiles, and shows the peak memory.
        """
        mode, folder = MODES[spec["mode"]], Path(spec["folder"])
        sizes = spec["naive_rows"] if mode.is_naive else [spec["batch_rows"]]
        micro_rows = sizes[0] if mode.is_naive else spec.get("micro_rows")
        self._turns = []
        for rows in sizes:
            stepper = Stepper(
                folder, spec["mode"], spec["precision"], rows, micro_rows, spec["overrides"]
            )
            batch = batch_of(stepper.cache, rows, None if draw is None else draw(rows))
            if mode.compiled and not self._turns:
                _check_compiled(stepper)
            stepper.step(batch)
            self._turns.append((rows, stepper, batch))
            if len(self._turns) == 1:
                # of one trainer; more of them are this benchmark's own doing
                self.ready = peak_rss_bytes()

    def __call__(self, _request: Any) -> dict[str, Any]:
        """Return seconds by rows, and phases and tokens of the largest step."""
        seconds = {rows: stepper.step(batch) for rows, stepper, batch in self._turns}
        return {
            "seconds": seconds,
            "phases": self._turns[-1][1].phases.seconds,
            "tokens": self._turns[-1][1].tokens,
        }


def _check_compiled(stepper: Stepper) -> None:
    """Raise AssertionError unless the compiled encoder gives the vectors of the plain one."""
    (encoder,) = stepper.trainer.model.encoders.values()
    tokens = stepper.cache.strings(stepper.cache.layout.strings[0].name).tokens.to(world().device)
    compiled, encoder.model._compiled_call_impl = encoder.model._compiled_call_impl, None
    with torch.no_grad():
        encoder.eval()
        plain = encoder(tokens, pad_to=128)
        encoder.model._compiled_call_impl = compiled
        error = float((encoder(tokens, pad_to=128) - plain).abs().max() / plain.abs().max())
    stepper.trainer.model.train()
    assert error < 1e-3, f"the compiled encoder is off by {error:.1e}"


def report(found: dict[str, Any]) -> Report:
    """Return each mode's rows per second, the bounds, and the phases of a step."""
    modes = named(found["modes"])
    errors = ", ".join(f"{mode} {error:.1e}" for mode, error in found["gradient_error"].items())
    of_phases = [Column("mode", "name")]
    of_phases += [
        Column(phase, lambda row, phase=phase: row["phases_s"][phase]) for phase in PHASES
    ]
    return Report(
        f"One optimizer step of {found['batch_rows']:,} rows, 21 distinct strings,"
        f" {found['encoder']} size, {found['precision']}",
        (
            "Checked before timing: gradients against per-row encoding (fp32, dropout off),"
            f" relative error: {errors}.",
            HOW,
        ),
        (
            Table(_mode_columns(found), modes),
            Table(BOUND_COLUMNS, named(found["bound"])),
            "Seconds of a step by phase (naive: of its largest measured step, scaled to all rows):",
            Table(of_phases, modes),
        ),
        (partial(_draw_rates, found), partial(_draw_phases, found)),
        size=(10.5, 3.8),
    )


def _mode_columns(found: dict[str, Any]) -> tuple[Column, ...]:
    """Return the columns of the modes' table."""
    spreads, hours = found["speedup_spread"], found["stage1_hours"]
    return (
        Column("mode", _what),
        Column("rows/s", "rows_per_s"),
        Column("step, s", "spread_s", with_spread),
        Column(
            "per_step is faster by", lambda row: spreads.get(f"per_step_vs_{row['name']}"), _ratio
        ),
        Column("encoder tokens", "encoder_tokens_per_step"),
        Column("peak GiB", "peak_rss_bytes", gib),
        Column("15 epochs of Stage 1, h", lambda row: hours[row["name"]]),
    )


BOUND_COLUMNS = (
    Column("against", "name"),
    Column("f, encoder's share", "f", ".5f"),
    Column("r, ratio of tokens", "r"),
    Column("Amdahl bound", "bound", times),
    Column("reached", "share_reached", ".0%"),
)


def _what(row: dict[str, Any]) -> str:
    """Return a mode in words, and what it was measured on."""
    text = f"{row['name']}: {MODES[row['name']].what}"
    if row["extrapolated"]:
        *rows, last = map(str, row["measured_rows"])
        text += (
            f"; extended from {', '.join(rows)} and {last} rows, {row['linearity_error']:.1%} off"
            " the line"
        )
    return text


def _ratio(ratio: dict[str, float] | None) -> str:
    return "1" if ratio is None else with_spread(ratio)


def _draw_rates(found: dict[str, Any], axes: Any) -> None:
    """Draw rows per second of each mode."""
    rates = {mode: result["rows_per_s"] for mode, result in found["modes"].items()}
    unit = f"rows per second (log scale), {found['precision']}\n{machine(found)}"
    draw_rates(axes, rates, ("per_step",), unit)


def _draw_phases(found: dict[str, Any], axes: Any) -> None:
    """Draw where the time of a step goes."""
    modes = list(found["modes"])[::-1]
    phases = [found["modes"][mode]["phases_s"] for mode in modes]
    starts = np.zeros(len(modes))
    style = {"edgecolor": "white", "linewidth": 0.5}
    for phase, color in zip(PHASES, PHASE_COLORS, strict=True):
        shares = np.array([100 * own[phase] / sum(own.values()) for own in phases])
        axes.barh(modes, shares, left=starts, color=color, label=phase, **style)
        starts += shares
    for index, mode in enumerate(modes):
        axes.text(101, index, f"{number(found['modes'][mode]['step_s'])} s", va="center")
    axes.set_xlim(0, 118)
    unit = f"share of a step of {found['batch_rows']:,} rows by phase, %\n(right: its seconds)"
    axes.set_xlabel(unit)
    axes.set_yticks([])
    handles = axes.get_legend_handles_labels()
    axes.figure.legend(*handles, loc="outside upper right", ncols=4, frameon=False)
