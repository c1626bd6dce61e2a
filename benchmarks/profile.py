"""Where the time of one optimizer step goes, operation by operation, with encoding (`per_step`) and without (`frozen`): why a goal is missed, and what is next.

Both modes take whole steps of the specification's size by torch's profiler; what one has over the other is what encoding costs. Their times without the
profiler, taken in turns in the same process, stand beside it. On a GPU the seconds are those of its kernels, and launches, waits of the host and the share
of the step in which the GPU works are told too: a step that waits for launches asks for CUDA graphs, one that does not for better kernels.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import embedcache.dropout
from benchmarks import timing
from benchmarks.publish import Panel, draw_bars, heading, number, output_path, parser, publish, table, tell
from benchmarks.setting import SMALL_NETWORK, Stepper, batch_of, device, make_setting
from benchmarks.stamp import stamp
from fusionnet.batches import RowTable

MODES = ("per_step", "frozen")
RANDOM = "random bits of dropout masks"
PYTHON = "Python between operations"
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_addmm_activation"),
    "norms, softmax, activations": ("native_layer_norm", "native_layer_norm_backward", "_softmax", "_softmax_backward_data", "gelu", "gelu_backward",
                                    "native_dropout", "native_dropout_backward"),
    "arithmetic by element": ("add", "add_", "mul", "mul_", "div", "div_", "sub", "lt_", "sum"),
    "copies, casts, gathers": ("copy_", "cat", "fill_", "zero_", "index_select", "index_copy", "index_copy_", "index_fill_", "index", "index_put_", "gather",
                               "index_add_", "embedding"),
    RANDOM: (RANDOM, "random_", "bernoulli_"),
    "update of the weights": ("_fused_adamw_", "_foreach_norm", "_foreach_mul_", "linalg_vector_norm"),
    "all else: small operations, Python, autograd": (),
}  # fmt: skip
REST = list(KINDS)[-1]
KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
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


FULL = Size("polybert", 240, 8192, 3, 9)
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
    """Return each mode's seconds without the profiler, and its operations with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_setting(folder, size.encoder, size.rows_per_patient, overrides=size.overrides)
        steppers = {mode: Stepper(folder, mode, precision, size.batch_rows, overrides=size.overrides) for mode in MODES}
        batch = batch_of(steppers["per_step"].cache, size.batch_rows)
        for stepper in steppers.values():
            stepper.step(batch)
        seconds = timing.interleaved({mode: lambda stepper=stepper: stepper.step(batch) for mode, stepper in steppers.items()}, size.rounds, tell)
        modes = {mode: {"step_s": timing.spread(seconds[mode]), **profiled(stepper, batch, size.steps)} for mode, stepper in steppers.items()}
    made = {"precision": precision, "encoder": size.encoder, "batch_rows": size.batch_rows, "steps": size.steps, "rounds": size.rounds}
    ratio = timing.paired_ratio(seconds["per_step"], seconds["frozen"])
    return {**stamp(), **made, "device": device().type, "per_step_to_frozen": ratio, "modes": modes}


def profiled(stepper: Stepper, batch: RowTable, steps: int) -> dict[str, Any]:
    """Return what the operations of a step take: calls and seconds by name, operations in products, and what a GPU's driver was asked."""
    on_gpu = device().type != "cpu"
    words = embedcache.dropout._random_words

    def drawn(*arguments: Any) -> torch.Tensor:
        with record_function(RANDOM):  # NumPy draws them: no operation of torch's
            return words(*arguments)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with mock.patch.object(embedcache.dropout, "_random_words", drawn), profile(activities=activities, with_flops=True) as profiler:
        seconds = timing.timed(lambda: _without_waiting(stepper, batch, steps)) / steps
    events = profiler.key_averages()
    of_host = [event for event in events if event.device_type == DeviceType.CPU]
    ops = {
        event.key.removeprefix("aten::"): {
            "calls": event.count / steps,
            "seconds": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / steps,
        }
        for event in of_host
        if event.key not in (*WAITS, *LAUNCHES)
    }
    if not on_gpu:
        ops[PYTHON] = {"calls": 0.0, "seconds": max(0.0, seconds - sum(op["seconds"] for op in ops.values()))}
    products = sum(event.flops for event in of_host if KIND_OF.get(event.key.removeprefix("aten::")) == "matrix products") / steps
    result: dict[str, Any] = {"profiled_s": seconds, "ops": ops, "gflop": products / 1e9, "kinds": by_kind(ops)}
    if on_gpu:
        counts = {name: sum(event.count for event in of_host if event.key in names) / steps for name, names in (("launches", LAUNCHES), ("waits", WAITS))}
        result |= {**counts, "busy_s": sum(kind["seconds"] for kind in result["kinds"].values())}
    return result


def _without_waiting(stepper: Stepper, batch: RowTable, steps: int) -> None:
    """Take steps one after another as training does: the stepper would wait for the GPU at the ends of its phases."""
    with mock.patch.object(timing, "settle", return_value=None):
        for _ in range(steps):
            stepper.step(batch)


def by_kind(ops: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return calls and seconds of each kind of operation."""
    kinds = {kind: {"calls": 0.0, "seconds": 0.0} for kind in KINDS}
    for name, op in ops.items():
        for key, value in op.items():
            kinds[KIND_OF.get(name, REST)][key] += value
    return kinds


def added(found: dict[str, Any], part: str) -> dict[str, dict[str, float]]:
    """Return what encoding adds, by operation or kind: per_step without frozen."""
    ours, frozen = (found["modes"][mode][part] for mode in MODES)
    nothing = {"calls": 0.0, "seconds": 0.0}
    return {name: {key: value - frozen.get(name, nothing)[key] for key, value in op.items()} for name, op in ours.items()}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables and what follows from them."""
    ours, frozen = (found["modes"][mode] for mode in MODES)
    kinds, ops = added(found, "kinds"), added(found, "ops")
    title = f"Where one optimizer step of {found['batch_rows']:,} rows goes, {found['encoder']} size, {found['precision']}"
    steps = " and ".join(f"{mode} {number(result['step_s']['median'])} s ({number(result['profiled_s'])} s)" for mode, result in found["modes"].items())
    remark = f"Means of {found['steps']} steps. A step without the profiler (in brackets: with it): {steps}, medians of {found['rounds']} turns."
    lines = heading(title, found, remark, _verdict(found, kinds))
    lines += table(
        ("kind of operation", "per_step, ms", "frozen, ms", "encoding adds, ms", "calls", "of them encoding's"),
        [
            (kind, *(_ms(mode["kinds"][kind]) for mode in (ours, frozen)), _ms(kinds[kind]), f"{ours['kinds'][kind]['calls']:,.0f}", f"{extra['calls']:,.0f}")
            for kind, extra in kinds.items()
        ],
    )
    lines += ["", "What encoding adds, by operation:", ""]
    shown = sorted(ops.items(), key=lambda item: -item[1]["seconds"])[:SHOWN]
    return "\n".join([*lines, *table(("operation", "ms", "calls"), [(f"`{name}`", _ms(op), f"{op['calls']:,.0f}") for name, op in shown])]) + "\n"


def _verdict(found: dict[str, Any], kinds: dict[str, dict[str, float]]) -> str:
    ours, frozen = (found["modes"][mode] for mode in MODES)
    ratio = found["per_step_to_frozen"]
    whole = sum(kind["seconds"] for kind in kinds.values())
    products = kinds["matrix products"]["seconds"]
    text = (
        f"per_step takes {number(ratio['median'])} x the time of frozen ({number(ratio['p20'])} to {number(ratio['p80'])}, within rounds). Encoding adds "
        f"{number(1e3 * whole)} ms: {number(1e3 * products)} ms in matrix products at {_rate(ours['gflop'] - frozen['gflop'], products)} GFLOP/s (the "
        f"network's own run at {_rate(frozen['gflop'], frozen['kinds']['matrix products']['seconds'])}), the rest in "
        f"{sum(kind['calls'] for kind in kinds.values()) - kinds['matrix products']['calls']:,.0f} other operations."
    )
    for mode, result in found["modes"].items():
        if "busy_s" in result:
            text += (
                f" {mode}: {result['launches']:,.0f} launches and {result['waits']:,.0f} waits of the host a step; the GPU works for "
                f"{result['busy_s'] / result['step_s']['median']:.0%} of it."
            )
    return text


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the time of each kind of operation, with encoding, without, and the difference."""
    parts: Iterable[tuple[str, dict[str, dict[str, float]]]] = (
        *((f"{mode}, {number(found['modes'][mode]['step_s']['median'])} s", found["modes"][mode]["kinds"]) for mode in MODES),
        ("what encoding adds", added(found, "kinds")),
    )
    unit = f"milliseconds of a step of {found['batch_rows']:,} rows, {found['precision']}"
    draw_bars(path, [Panel(title, unit, {kind: max(0.0, 1e3 * each["seconds"]) for kind, each in kinds.items()}) for title, kinds in parts], ours=list(KINDS))


def _ms(op: dict[str, float]) -> str:
    return number(1e3 * op["seconds"])


def _rate(gflop: float, seconds: float) -> str:
    return number(gflop / seconds) if seconds > 0 else "-"
