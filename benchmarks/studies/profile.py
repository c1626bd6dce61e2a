"""Where the time of one optimizer step goes, operation by operation and phase by phase: why a goal
is missed, and what is next.

Steps of the specification's size in mode `per_step` are taken under torch's profiler, in which
every phase leaves a mark; an operation belongs to the phase that started it. What the same step
takes without the profiler stands beside it, in turns with `frozen`, where encoding costs nothing.
On a GPU the seconds are those of its kernels, and launches, waits of the host and the share of the
step in which the GPU works are told too: a step that waits for launches asks for CUDA graphs, one
that does not for better kernels.
"""

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.harness.timing
import embedcache.encoder.dropout
from benchmarks.harness.cells import Column, Table, named, number, with_spread
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.setting import SMALL_NETWORK, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import Stepper, batch_of, device
from benchmarks.harness.timing import PHASES, interleaved, paired_ratio, spread, timed
from benchmarks.harness.workers import Worker
from benchmarks.studies.operations import (
    ASKED,
    ENCODER,
    OTHERS,
    PRODUCTS,
    RANDOM,
    by_kind,
    by_phase,
    leave_marks,
    seconds_of,
    together,
)

MODES = ("per_step", "frozen")
# of their shapes; torch counts the other form alone
IN_PLACE = {torch.ops.aten.addmm_: lambda _sum, a, b, **_: 2 * a[0] * a[1] * b[1]}
SHOWN = 16  # operations in the table


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    encoder: str
    rows_per_patient: int
    batch_rows: int
    steps: int  # that are profiled
    rounds: int  # without the profiler
    overrides: tuple[str, ...] = ()


FULL = Size("polybert", 240, 8192, 5, 9)
QUICK = Size("middle", 24, 1024, 2, 2)
TINY = Size("tiny", 24, 64, 2, 2, (*SMALL_NETWORK, "train.cpu_threads=1"))  # for the tests


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/profile_<precision>.json, .md and .png."""
    options = parser("profile", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    found = run(QUICK if arguments.quick else FULL, arguments.precision)
    found["quick"] = arguments.quick
    publish(output_path(f"profile_{arguments.precision}", arguments), found, report)


def run(size: Size, precision: str) -> dict[str, Any]:
    """Return each mode's seconds without the profiler, and the operations of per_step with it."""
    made: dict[str, Any] = {
        "precision": precision,
        "encoder": size.encoder,
        "batch_rows": size.batch_rows,
        "steps": size.steps,
        "rounds": size.rounds,
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        tell("now making the setting and two workers")
        make_setting(Path(name), size.encoder, size.rows_per_patient, overrides=size.overrides)
        spec = {**made, "folder": name, "overrides": size.overrides}
        workers = {
            mode: stack.enter_context(
                Worker("benchmarks.studies.profile:Turn", {**spec, "mode": mode})
            )
            for mode in MODES
        }
        turns = {mode: partial(worker.ask, "time") for mode, worker in workers.items()}
        seconds = interleaved(turns, size.rounds, tell)
        tell("now profiling per_step")
        found = workers["per_step"].ask("profile")
        gflop = {mode: worker.ask("gflop") for mode, worker in workers.items()}
    made |= {
        "encoder_gflop": gflop["per_step"] - gflop["frozen"],
        "other_gflop": gflop["frozen"],
        "step_s": {mode: spread(own) for mode, own in seconds.items()},
        "per_step_to_frozen": paired_ratio(seconds["per_step"], seconds["frozen"]),
    }
    return {**stamp(), **made, **found}


class Turn:
    """A worker's work: one step in its mode, or some under the profiler."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Make the stepper and let it take a first step."""
        self._stepper = Stepper(
            Path(spec["folder"]),
            spec["mode"],
            spec["precision"],
            spec["batch_rows"],
            overrides=spec["overrides"],
        )
        self._batch, self._steps = batch_of(self._stepper.cache, spec["batch_rows"]), spec["steps"]
        self._stepper.step(self._batch)

    def __call__(self, wanted: str) -> Any:
        """Return what is wanted of a step.

        "time": its seconds; "gflop": the operations of its matrix products; "profile": all its
        operations by phase.
        """
        if wanted == "profile":
            return self._profile()
        if wanted == "time":
            return self._stepper.step(self._batch)
        # The profiler's own count would ask for shapes, which slows the step down; compiled code
        # hides its products.
        with (
            torch.compiler.set_stance("force_eager"),
            FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter,
        ):
            self._stepper.step(self._batch)
        return counter.get_total_flops() / 1e9

    def _profile(self) -> dict[str, Any]:
        """Return the seconds of a mean step under the profiler, and its operations by phase.

        On a GPU also how often its driver was asked for launches and waits.
        """
        on_gpu = device().type != "cpu"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        if self._stepper.trainer.model.network._compiled_call_impl is not None:
            # under a profiler, compiled code is compiled once more
            with profile(activities=activities):
                self._stepper.step(self._batch)
        leave_marks(self._stepper.phases)
        with _random_words_marked(), profile(activities=activities) as profiler:
            seconds = timed(self._steps_without_waiting) / self._steps
        events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
        phases, asked = by_phase(events, on_gpu)
        for ops in (asked, *phases.values()):
            for op in ops.values():
                for key in op:
                    op[key] /= self._steps
        result: dict[str, Any] = {"profiled_s": seconds, "phases": phases}
        if on_gpu:
            for name, keys in ASKED.items():
                result[name] = sum(asked[key]["calls"] for key in keys if key in asked)
        return result

    def _steps_without_waiting(self) -> None:
        """Take steps one after another as training does.

        The stepper would wait for the GPU at the ends of its phases.
        """
        with mock.patch.object(benchmarks.harness.timing, "settle", return_value=None):
            for _ in range(self._steps):
                self._stepper.step(self._batch)


def _random_words_marked() -> AbstractContextManager[Any]:
    """Let the drawing of dropout masks leave an event: NumPy does it, no operation of torch's."""
    words = embedcache.encoder.dropout._random_words

    def drawn(*arguments: Any) -> torch.Tensor:
        with record_function(RANDOM):
            return words(*arguments)

    return mock.patch.object(embedcache.encoder.dropout, "_random_words", drawn)


def report(found: dict[str, Any]) -> Report:
    """Return the milliseconds of a step by kind, phase and operation, and what follows."""
    phases = found["phases"]
    shown = [kind for kind, op in by_kind(phases).items() if op["calls"]]
    kinds = {phase: by_kind(phases, [phase]) for phase in PHASES} | {"whole": by_kind(phases)}
    of_kinds = [Column("kind of operation", lambda kind: kind)]
    of_kinds += [
        Column(phase, lambda kind, ops=ops: 1e3 * ops[kind]["seconds"])
        for phase, ops in kinds.items()
    ]
    of_kinds.append(Column("calls", lambda kind: kinds["whole"][kind]["calls"], ",.0f"))
    of_operations = (
        Column("operation", lambda row: f"`{row['name']}`"),
        Column("ms", lambda row: 1e3 * row["seconds"]),
        Column("calls", "calls", ",.0f"),
    )
    operations = sorted(named(together(phases, ENCODER)), key=lambda row: -row["seconds"])
    plain = " and ".join(f"{mode} {with_spread(own)} s" for mode, own in found["step_s"].items())
    how = (
        f"Seconds of a step: {plain}; medians of {found['rounds']} turns, in brackets the 20th and"
        f" 80th percentile; under the profiler per_step takes {number(found['profiled_s'])} s, the"
        f" mean of {found['steps']} steps."
    )
    return Report(
        f"Where one optimizer step of {found['batch_rows']:,} rows goes, {found['encoder']} size,"
        f" {found['precision']}",
        (how, _verdict(found)),
        (
            "Milliseconds of a step by kind of operation and by phase:",
            Table(of_kinds, shown),
            "The encoder's two passes, by operation:",
            Table(of_operations, operations[:SHOWN]),
        ),
        _panels(found, shown),
    )


def _panels(found: dict[str, Any], shown: Sequence[str]) -> list[Panel]:
    """Return the time of each kind of operation, in the encoder's passes and in all else."""
    unit = f"milliseconds of a step of {found['batch_rows']:,} rows, {found['precision']}"
    titles = {"the encoder's two passes": ENCODER, "the network, its loss and update": OTHERS}
    panels = []
    for title, phases in titles.items():
        kinds = by_kind(found["phases"], phases)
        bars = {kind: max(0.0, 1e3 * kinds[kind]["seconds"]) for kind in shown}
        title = f"{title}, {number(1e3 * seconds_of(kinds))} ms"
        panels.append(Panel(title, unit, bars, ours=(PRODUCTS,)))
    return panels


def _verdict(found: dict[str, Any]) -> str:
    """Return what the profile says in words."""
    encoder, others = (by_kind(found["phases"], phases) for phases in (ENCODER, OTHERS))
    products = encoder[PRODUCTS]
    rates = (
        found["encoder_gflop"] / products["seconds"],
        found["other_gflop"] / others[PRODUCTS]["seconds"],
    )
    calls = sum(kind["calls"] for kind in encoder.values()) - products["calls"]
    ratio = {key: number(value) for key, value in found["per_step_to_frozen"].items()}
    text = (
        f"per_step takes {ratio['median']} x the time of frozen ({ratio['p20']} to {ratio['p80']},"
        f" within rounds). The encoder's two passes take {number(1e3 * seconds_of(encoder))} ms:"
        f" {number(1e3 * products['seconds'])} ms are matrix products, at {number(rates[0])}"
        f" GFLOP/s (all others run at {number(rates[1])}), the rest are {calls:,.0f} other"
        " operations."
    )
    if "launches" in found:
        busy = seconds_of(by_kind(found["phases"])) / found["step_s"]["per_step"]["median"]
        text += (
            f" A step asks for {found['launches']:,.0f} launches and {found['waits']:,.0f} waits of"
            f" the host; the GPU works in {busy:.0%} of it."
        )
    return text
