"""One optimizer step at full size: naive per-row encoding against encoding each distinct string
once.

Each mode has a process of its own, on the same cohort, encoder, LoRA, precision and optimizer step;
the processes take turns, round after round. Before anything is timed, the gradients of the modes
are compared with the naive ones (dropout off, fp32). Naive steps of the full size would take up to
half an hour each, so naive time is measured on three smaller steps and extended along the line
through the outer two; how far the middle one is off that line is reported. Everything else is
measured on whole steps.

The bound is Amdahl's: f is the encoder's share of the naive step, r the ratio of encoder tokens,
and no saving of tokens can give more than 1 / ((1 - f) + f / r). It is taken between modes of one
precision.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.publish import (
    COLORS,
    PHASE_COLORS,
    axes_pair,
    heading,
    machine,
    number,
    output_path,
    parser,
    publish,
    save,
    table,
    tell,
)
from benchmarks.harness.setting import (
    MODES,
    SMALL_NETWORK,
    Stepper,
    batch_of,
    gradient_errors,
    make_setting,
    world,
)
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import PHASES, extended, interleaved, paired_ratio, spread
from benchmarks.harness.workers import Worker
from fusionnet.train.runlog import peak_rss_bytes

STAGE1_ROWS = 15 * 313_236  # epochs times train rows
# of the run's own precision: what the bound may be taken against
YARDSTICKS = ("naive_128", "naive_longest", "naive_bucketed", "naive_compiled")


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
    options = parser("throughput", __doc__)
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    found = run(QUICK if arguments.quick else FULL, arguments.precision)
    found["quick"] = arguments.quick
    publish(output_path(f"throughput_{arguments.precision}", arguments), found, as_markdown, draw)


def run(size: Size, precision: str) -> dict[str, Any]:
    """Return the measured and derived numbers of all modes."""
    modes = [
        name
        for name, mode in MODES.items()
        if mode.precision != precision and name not in size.left_out
    ]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        make_setting(folder, size.encoder, size.rows_per_patient, overrides=size.overrides)
        found: dict[str, Any] = {
            **stamp(),
            "precision": precision,
            "encoder": size.encoder,
            "batch_rows": size.batch_rows,
        }
        found["gradient_error"] = gradient_errors(folder, overrides=size.overrides)
        tell("gradients agree; starting one process per mode")
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
        turns = interleaved(
            {mode: worker.ask for mode, worker in workers.items()}, size.rounds, tell
        )
    found["modes"] = {mode: summary(mode, turns[mode], peaks[mode], size) for mode in modes}
    derive(found)
    return found


class Turn:
    """A worker's work: one step in its mode, or for naive modes one step of each of three sizes."""

    def __init__(self, spec: dict[str, Any], draw: Callable[[int], Tensor] | None = None) -> None:
        """Make the steppers and let each take a first step, which warms up, compiles, and shows the
        peak memory; `draw` gives rows their strings.
        """
        mode, folder = spec["mode"], Path(spec["folder"])
        sizes, micro = (
            (spec["naive_rows"], spec["naive_rows"][0])
            if MODES[mode].is_naive
            else ([spec["batch_rows"]], spec.get("micro_rows"))
        )
        self._turns = []
        for rows in sizes:
            stepper = Stepper(folder, mode, spec["precision"], rows, micro, spec["overrides"])
            batch = batch_of(stepper.cache, rows, None if draw is None else draw(rows))
            if MODES[mode].compiled and not self._turns:
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


def summary(mode: str, turns: list[dict[str, Any]], peak: int, size: Size) -> dict[str, Any]:
    """Return one mode's numbers at the full number of rows, from what its turns measured."""
    measured = [{int(rows): seconds for rows, seconds in turn["seconds"].items()} for turn in turns]
    largest = max(measured[0])
    steps = [
        extended(seconds, size.batch_rows)[0] if len(seconds) > 1 else seconds[largest]
        for seconds in measured
    ]
    step = statistics.median(steps)
    result: dict[str, Any] = {
        "rows_per_s": size.batch_rows / step,
        "step_s": step,
        "spread_s": spread(steps),
        "rounds_s": steps,
    }
    medians = {
        rows: statistics.median(seconds[rows] for seconds in measured) for rows in measured[0]
    }
    factor = size.batch_rows / largest
    result |= {
        "encoder_tokens_per_step": round(turns[0]["tokens"] * factor),
        "peak_rss_bytes": peak,
        "extrapolated": len(medians) > 1,
    }
    if len(medians) > 1:
        result |= {
            "measured_rows": sorted(medians),
            "measured_s": medians,
            "linearity_error": extended(medians, size.batch_rows)[1],
        }
    result["phases_s"] = {
        phase: factor * statistics.median(turn["phases"][phase] for turn in turns)
        for phase in PHASES
    }
    return result


def amdahl(f: float, r: float) -> float:
    """Return the largest speed-up where a share f of the time falls by r and the rest stays."""
    return 1 / ((1 - f) + f / r)


def derive(found: dict[str, Any]) -> None:
    """Add speed-ups, f, r and the bound to the measured modes."""
    modes = found["modes"]
    ours, frozen = modes["per_step"], modes["frozen"]
    ratios = {
        mode: paired_ratio(result["rounds_s"], ours["rounds_s"])
        for mode, result in modes.items()
        if mode != "per_step"
    }
    found["speedup"] = {f"per_step_vs_{mode}": ratio["median"] for mode, ratio in ratios.items()}
    found["speedup_spread"] = {f"per_step_vs_{mode}": ratio for mode, ratio in ratios.items()}
    found["bound"] = {}
    for mode in YARDSTICKS:
        if mode in modes:
            f = 1 - frozen["step_s"] / modes[mode]["step_s"]
            r = modes[mode]["encoder_tokens_per_step"] / ours["encoder_tokens_per_step"]
            found["bound"][mode] = {
                "f": f,
                "r": r,
                "bound": amdahl(f, r),
                "share_reached": found["speedup"][f"per_step_vs_{mode}"] / amdahl(f, r),
            }
    found["stage1_hours"] = {
        mode: STAGE1_ROWS / result["rows_per_s"] / 3600 for mode, result in modes.items()
    }


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    errors = ", ".join(f"{mode} {error:.1e}" for mode, error in found["gradient_error"].items())
    lines = heading(
        f"One optimizer step of {found['batch_rows']:,} rows, 21 distinct strings,"
        f" {found['encoder']} size, {found['precision']}",
        found,
        "Checked before timing: gradients against per-row encoding (fp32, dropout off), relative"
        f" error: {errors}.",
        "Modes take turns in rounds; medians, in brackets the 20th and 80th percentile. Ratios are"
        " taken within rounds. Naive steps are extended along a line from small ones; 'off the"
        " line' is the error of the step between them.",
    )
    rows = []
    for mode, result in found["modes"].items():
        ratio, steps = found["speedup_spread"].get(f"per_step_vs_{mode}"), result["spread_s"]
        faster = (
            "1"
            if ratio is None
            else f"{number(ratio['median'])} ({number(ratio['p20'])} to {number(ratio['p80'])})"
        )
        note = (
            f"; extended from {_listed(result['measured_rows'])} rows,"
            f" {result['linearity_error']:.1%} off the line"
            if result["extrapolated"]
            else ""
        )
        step = f"{number(result['step_s'])} ({number(steps['p20'])} to {number(steps['p80'])})"
        rows.append(
            (
                f"{mode}: {MODES[mode].what}{note}",
                number(result["rows_per_s"]),
                step,
                faster,
                f"{result['encoder_tokens_per_step']:,}",
                f"{result['peak_rss_bytes'] / 2**30:.1f}",
                number(found["stage1_hours"][mode]),
            )
        )
    header = (
        "mode",
        "rows/s",
        "step, s",
        "per_step is faster by",
        "encoder tokens",
        "peak GiB",
        "15 epochs of Stage 1, h",
    )
    lines += [*table(header, rows), ""]
    header = ("against", "f, encoder's share", "r, ratio of tokens", "Amdahl bound", "reached")
    lines += table(
        header,
        [
            (
                mode,
                f"{bound['f']:.5f}",
                number(bound["r"]),
                f"{number(bound['bound'])} x",
                f"{bound['share_reached']:.0%}",
            )
            for mode, bound in found["bound"].items()
        ],
    )
    lines += [
        "",
        "Seconds of a step by phase (naive: of its largest measured step, scaled to all rows):",
        "",
    ]
    lines += table(
        ("mode", *PHASES),
        [
            (mode, *(number(result["phases_s"][phase]) for phase in PHASES))
            for mode, result in found["modes"].items()
        ],
    )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw rows per second of each mode, and where the time of a step goes."""
    figure, (left, right) = axes_pair(10.5, 3.8, columns=2)
    modes = list(found["modes"])[::-1]
    rates = [found["modes"][mode]["rows_per_s"] for mode in modes]
    bars = left.barh(
        modes, rates, color=[COLORS["ours" if mode == "per_step" else "plain"] for mode in modes]
    )
    left.bar_label(bars, [number(rate) for rate in rates], padding=3)
    left.set_xscale("log")
    left.set_xlim(min(rates) / 2, max(rates) * 5)
    left.set_xlabel(f"rows per second (log scale), {found['precision']}\n{machine(found)}")
    starts = np.zeros(len(modes))
    for phase, color in zip(PHASES, PHASE_COLORS, strict=True):
        shares = np.array(
            [
                100
                * found["modes"][mode]["phases_s"][phase]
                / sum(found["modes"][mode]["phases_s"].values())
                for mode in modes
            ]
        )
        right.barh(
            modes, shares, left=starts, color=color, edgecolor="white", linewidth=0.5, label=phase
        )
        starts += shares
    for place, mode in enumerate(modes):
        right.text(101, place, f"{number(found['modes'][mode]['step_s'])} s", va="center")
    right.set_xlim(0, 118)
    right.set_xlabel(
        f"share of a step of {found['batch_rows']:,} rows by phase, %\n(right: its seconds)"
    )
    right.set_yticks([])
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False
    )
    save(figure, path)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
