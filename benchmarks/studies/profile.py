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
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.harness.timing
import embedcache.encoder.dropout
from benchmarks.harness.publish import (
    Panel,
    draw_bars,
    heading,
    number,
    output_path,
    parser,
    publish,
    table,
    tell,
)
from benchmarks.harness.setting import SMALL_NETWORK, Stepper, batch_of, device, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import PHASES, Phases, interleaved, paired_ratio, spread, timed
from benchmarks.harness.workers import Worker

Ops = dict[str, dict[str, float]]  # calls and seconds by name
MODES = ("per_step", "frozen")
PRODUCTS = "matrix products"
RANDOM = "random bits of dropout masks"
PYTHON = "Python between operations"
COMPILED = "kernels of torch.compile and Triton"
KINDS = {
    PRODUCTS: ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_addmm_activation"),
    "norms, softmax, activations": (
        "native_layer_norm",
        "native_layer_norm_backward",
        "_softmax",
        "_softmax_backward_data",
        "gelu",
        "gelu_backward",
        "native_dropout",
        "native_dropout_backward",
    ),
    "arithmetic by element": ("add", "add_", "mul", "mul_", "div", "div_", "sub", "lt_", "sum"),
    "copies, casts, gathers": (
        "copy_",
        "cat",
        "fill_",
        "zero_",
        "index_select",
        "index_copy",
        "index_copy_",
        "index_fill_",
        "index",
        "index_put_",
        "gather",
        "index_add_",
        "embedding",
    ),
    RANDOM: (RANDOM, "random_", "bernoulli_"),
    COMPILED: (),  # by their names' beginnings
    "update of the weights": (
        "_fused_adamw_",
        "_foreach_norm",
        "_foreach_mul_",
        "linalg_vector_norm",
    ),
    "all else: small operations, Python, autograd": (),
}
REST = list(KINDS)[-1]
KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
OF_COMPILED = ("triton_", "fusionnet::")
ASKED = {  # of the driver of a GPU
    "launches": (
        "cudaLaunchKernel",
        "cudaLaunchKernelExC",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cudaGraphLaunch",
    ),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
# of their shapes; torch counts the other form alone
IN_PLACE = {torch.ops.aten.addmm_: lambda _sum, a, b, **_: 2 * a[0] * a[1] * b[1]}
ENCODER = ("encode", "backward: encoder")
MARK, OUTSIDE = "phase of the step: ", "outside"
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
    publish(output_path(f"profile_{arguments.precision}", arguments), found, as_markdown, draw)


def run(size: Size, precision: str) -> dict[str, Any]:
    """Return each mode's seconds without the profiler, and the operations of per_step with it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        make_setting(Path(name), size.encoder, size.rows_per_patient, overrides=size.overrides)
        spec = {
            "folder": name,
            "precision": precision,
            "batch_rows": size.batch_rows,
            "steps": size.steps,
            "overrides": size.overrides,
        }
        workers = {
            mode: stack.enter_context(
                Worker("benchmarks.studies.profile:Turn", {**spec, "mode": mode})
            )
            for mode in MODES
        }
        seconds = interleaved(
            {mode: lambda worker=worker: worker.ask("time") for mode, worker in workers.items()},
            size.rounds,
            tell,
        )
        found = workers["per_step"].ask("profile")
        gflop = {mode: worker.ask("gflop") for mode, worker in workers.items()}
    made = {
        "precision": precision,
        "encoder": size.encoder,
        "batch_rows": size.batch_rows,
        "steps": size.steps,
        "rounds": size.rounds,
    }
    made["encoder_gflop"], made["other_gflop"] = (
        gflop["per_step"] - gflop["frozen"],
        gflop["frozen"],
    )
    made["step_s"] = {mode: spread(each) for mode, each in seconds.items()}
    made["per_step_to_frozen"] = paired_ratio(seconds["per_step"], seconds["frozen"])
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
        """Return the seconds of a step ("time"), the operations of its matrix products ("gflop"),
        or all its operations by phase ("profile").
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
        """Return the seconds of a mean step under the profiler, calls and seconds of its
        operations, and what the driver of a GPU was asked.
        """
        on_gpu, words = device().type != "cpu", embedcache.encoder.dropout._random_words

        def drawn(*arguments: Any) -> torch.Tensor:
            with record_function(RANDOM):  # NumPy draws them: no operation of torch's
                return words(*arguments)

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        if self._stepper.trainer.model.network._compiled_call_impl is not None:
            # under a profiler, compiled code is compiled once more
            with profile(activities=activities):
                self._stepper.step(self._batch)
        _leave_marks(self._stepper.phases)
        with (
            mock.patch.object(embedcache.encoder.dropout, "_random_words", drawn),
            profile(activities=activities) as profiler,
        ):
            seconds = timed(self._steps_without_waiting) / self._steps
        events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
        phases, asked = by_phase(events, on_gpu)
        for op in (*asked.values(), *(op for ops in phases.values() for op in ops.values())):
            for key in op:
                op[key] /= self._steps
        result: dict[str, Any] = {"profiled_s": seconds, "phases": phases}
        if on_gpu:
            result |= {
                name: sum(asked[key]["calls"] for key in keys if key in asked)
                for name, keys in ASKED.items()
            }
        return result

    def _steps_without_waiting(self) -> None:
        """Take steps one after another as training does: the stepper would wait for the GPU at the
        ends of its phases.
        """
        with mock.patch.object(benchmarks.harness.timing, "settle", return_value=None):
            for _ in range(self._steps):
                self._stepper.step(self._batch)


def _leave_marks(phases: Phases) -> None:
    """Let each change of phase leave an event that names the new one."""

    def marking(method: Callable[..., Any], ends: bool) -> Callable[..., Any]:
        def marked(*arguments: Any) -> Any:
            result = method(*arguments)
            with record_function(MARK + (OUTSIDE if ends else phases._open[-1])):
                return result

        return marked

    for name in ("reset", "enter", "leave", "become", "finish"):
        setattr(phases, name, marking(getattr(phases, name), name == "finish"))


def by_phase(events: Sequence[Any], on_gpu: bool) -> tuple[dict[str, Ops], Ops]:
    """Return calls and seconds of each operation in each phase, and of what the driver of a GPU was
    asked; on a CPU what is left of a phase is Python's.
    """
    marks = sorted(
        (event.time_range.start, event.name.removeprefix(MARK))
        for event in events
        if event.name.startswith(MARK)
    )
    times = [time for time, _ in marks]
    phases: dict[str, Ops] = {
        phase: defaultdict(lambda: {"calls": 0.0, "seconds": 0.0}) for phase in PHASES
    }
    asked: Ops = defaultdict(lambda: {"calls": 0.0})
    for event in events:
        place = bisect_right(times, event.time_range.start) - 1
        if event.name.startswith(MARK) or place < 0 or marks[place][1] == OUTSIDE:
            continue
        if any(event.name in names for names in ASKED.values()):
            asked[event.name]["calls"] += 1
            continue
        op = phases[marks[place][1]][event.name.removeprefix("aten::")]
        op["calls"] += 1
        op["seconds"] += (
            event.self_device_time_total if on_gpu else event.self_cpu_time_total
        ) / 1e6
    if not on_gpu:
        for (start, phase), (stop, _) in pairwise(marks):
            if phase != OUTSIDE:
                phases[phase][PYTHON]["seconds"] += (stop - start) / 1e6
        for ops in phases.values():
            ops[PYTHON]["seconds"] -= sum(
                op["seconds"] for name, op in ops.items() if name != PYTHON
            )
    return {phase: dict(ops) for phase, ops in phases.items()}, dict(asked)


def by_kind(phases: dict[str, Ops], wanted: Iterable[str] = PHASES) -> Ops:
    """Return calls and seconds of each kind of operation in some phases."""
    kinds = {kind: {"calls": 0.0, "seconds": 0.0} for kind in KINDS}
    for name, op in _together(phases, wanted).items():
        for key, value in op.items():
            kinds[COMPILED if name.startswith(OF_COMPILED) else KIND_OF.get(name, REST)][key] += (
                value
            )
    return kinds


def _together(phases: dict[str, Ops], wanted: Iterable[str]) -> Ops:
    """Return calls and seconds of each operation in some phases."""
    ops: Ops = defaultdict(lambda: {"calls": 0.0, "seconds": 0.0})
    for phase in wanted:
        for name, op in phases[phase].items():
            for key, value in op.items():
                ops[name][key] += value
    return ops


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables and what follows from them."""
    title = (
        f"Where one optimizer step of {found['batch_rows']:,} rows goes, {found['encoder']} size,"
        f" {found['precision']}"
    )
    plain = " and ".join(
        f"{mode} {number(step['median'])} s ({number(step['p20'])} to {number(step['p80'])})"
        for mode, step in found["step_s"].items()
    )
    lines = heading(
        title,
        found,
        f"A step takes {plain}: medians of {found['rounds']} turns, in brackets the 20th and 80th"
        f" percentile; under the profiler per_step takes {number(found['profiled_s'])} s, the mean"
        f" of {found['steps']} steps.",
        _verdict(found),
    )
    columns = {phase: by_kind(found["phases"], [phase]) for phase in PHASES}
    whole = by_kind(found["phases"])
    lines += ["Milliseconds of a step by kind of operation and by phase:", ""]
    rows = [
        (
            kind,
            *(number(1e3 * columns[phase][kind]["seconds"]) for phase in PHASES),
            number(1e3 * op["seconds"]),
            f"{op['calls']:,.0f}",
        )
        for kind, op in whole.items()
        if op["calls"]
    ]
    lines += [
        *table(("kind of operation", *PHASES, "whole", "calls"), rows),
        "",
        "The encoder's two passes, by operation:",
        "",
    ]
    shown = sorted(
        _together(found["phases"], ENCODER).items(), key=lambda item: -item[1]["seconds"]
    )[:SHOWN]
    rows = [(f"`{name}`", number(1e3 * op["seconds"]), f"{op['calls']:,.0f}") for name, op in shown]
    return "\n".join([*lines, *table(("operation", "ms", "calls"), rows)]) + "\n"


def _verdict(found: dict[str, Any]) -> str:
    ratio = found["per_step_to_frozen"]
    encoder, rest = (
        by_kind(found["phases"], phases)
        for phases in (ENCODER, [phase for phase in PHASES if phase not in ENCODER])
    )
    products = encoder[PRODUCTS]["seconds"]
    text = (
        f"per_step takes {number(ratio['median'])} x the time of frozen ({number(ratio['p20'])} to"
        f" {number(ratio['p80'])}, within rounds). The encoder's two passes take"
        f" {number(1e3 * _seconds(encoder))} ms: {number(1e3 * products)} ms are matrix products,"
        f" at {number(found['encoder_gflop'] / products)} GFLOP/s (all others run at"
        f" {number(found['other_gflop'] / rest[PRODUCTS]['seconds'])}), the rest are"
        f" {sum(kind['calls'] for kind in encoder.values()) - encoder[PRODUCTS]['calls']:,.0f}"
        " other operations."
    )
    if "launches" in found:
        busy = _seconds(by_kind(found["phases"])) / found["step_s"]["per_step"]["median"]
        text += (
            f" A step asks for {found['launches']:,.0f} launches and {found['waits']:,.0f} waits of"
            f" the host; the GPU works in {busy:.0%} of it."
        )
    return text


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the time of each kind of operation, in the encoder's passes and in all else."""
    unit = f"milliseconds of a step of {found['batch_rows']:,} rows, {found['precision']}"
    shown = [kind for kind, op in by_kind(found["phases"]).items() if op["calls"]]
    panels = []
    for title, phases in (
        ("the encoder's two passes", ENCODER),
        ("the network, its loss and update", [each for each in PHASES if each not in ENCODER]),
    ):
        kinds = by_kind(found["phases"], phases)
        panels.append(
            Panel(
                f"{title}, {number(1e3 * _seconds(kinds))} ms",
                unit,
                {kind: max(0.0, 1e3 * kinds[kind]["seconds"]) for kind in shown},
            )
        )
    draw_bars(path, panels, ours=(PRODUCTS,))


def _seconds(ops: Ops) -> float:
    return sum(op["seconds"] for op in ops.values())
