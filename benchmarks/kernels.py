"""Each kernel against eager PyTorch and torch.compile, forward and backward, over rows B and
distinct strings U.

Every case's outputs and gradients are checked against float64 before it is timed. Times are those
of one call at a time, as a training step makes them, the launches included; on a GPU the L2 cache
is cleared before each. GB/s counts what an operation must read and write at least, whoever computes
it, so that it can be held against the memory's own. On a CPU there is no kernel to time, only what
runs in its place.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cells import Column, Table
from benchmarks.harness.pictures import COLORS
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from benchmarks.kernel_cases import OPERATIONS, Case, make_case

COLOURS = {"eager": COLORS["plain"], "compiled": COLORS["mid"], "kernel": COLORS["ours"]}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def main(words: list[str]) -> None:
    """Measure all operations and write benchmarks/results/kernels_<device>_<precision>.*."""
    command = parser("kernels", __doc__ or "")
    command.add_argument(
        "--precision", choices=("fp32", "bf16"), help="unset: bf16 on a GPU, fp32 on a CPU"
    )
    arguments = command.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = arguments.precision or ("bf16" if device.type == "cuda" else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = (1024, 8192) if arguments.quick else (1024, 8192, 65_536)
    vectors = (21, 300) if arguments.quick else (1, 21, 300, 5000)
    if arguments.quick and device.type == "cpu":
        rows, vectors = rows[:1], vectors[:1]  # compiling takes longer than the rest
    seconds = 0.05 if arguments.quick else 0.3
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick, "cases": []}
    found |= {"device": device.type, "precision": precision}
    for name in OPERATIONS:
        of_name = (0,) if name == "multitask_loss" else vectors
        for num_rows, num_vectors in itertools.product(rows, of_name):
            tell(f"now measuring {name}, B {num_rows:,}, U {num_vectors:,}")
            measured = measure(name, num_rows, num_vectors, dtype, device, seconds)
            case = {"operation": name, "B": num_rows, "U": num_vectors, **measured}
            found["cases"].append(case)
            print(_line(case), flush=True)
    publish(output_path(f"kernels_{device.type}_{precision}", arguments), found, report)


def measure(
    name: str,
    num_rows: int,
    num_vectors: int,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Return for each way its checked error, and time and GB/s of forward, and of both passes."""
    torch.compiler.reset()
    case = make_case(name, num_rows, num_vectors, dtype, device)
    result: dict[str, Any] = {}
    for way, call in case.calls.items():
        leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]

        def both(call: Callable[..., Tensor] = call, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(call(*leaves), leaves, case.gradient)

        def forward(call: Callable[..., Tensor] = call) -> Tensor:
            with torch.no_grad():
                return call(*case.inputs)

        error = check(case, call, leaves, TOLERANCE[dtype])
        times = {"forward": (timed(forward, device, seconds), case.forward_bytes)}
        times["both"] = (timed(both, device, seconds), case.forward_bytes + case.backward_bytes)
        result[way] = {
            "error": error,
            **{
                part: {**spread, "GB_per_s": moved / spread["median_s"] / 1e9}
                for part, (spread, moved) in times.items()
            },
        }
    return result


def check(case: Case, call: Callable[..., Tensor], leaves: list[Tensor], tolerance: float) -> float:
    """Return the largest relative error of output and gradients against float64.

    Raises AssertionError where it is not below `tolerance`: nothing is timed then.
    """
    out = call(*leaves)
    gradients = torch.autograd.grad(out, leaves, case.gradient.to(out.dtype))
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = case.exact(out.detach(), *doubles)
    wanted = torch.autograd.grad(exact, doubles, case.gradient.double())
    errors = [
        ((mine.double() - true).norm() / true.norm()).item()
        for mine, true in zip((out, *gradients), (exact, *wanted), strict=True)
    ]
    if not max(errors) < tolerance:
        raise AssertionError(f"output and gradients are off by {errors}: nothing was timed")
    return max(errors)


def timed(call: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, float]:
    """Return median, 20 % and 80 % of a call's times, in seconds.

    From at least 7 calls, after 3 that warm up.
    """
    for _ in range(3):
        call()
    once = _once_on_gpu if device.type == "cuda" else _once_on_cpu
    times = [once(call)]
    started = time.perf_counter()
    while len(times) < 7 or (time.perf_counter() - started < seconds and len(times) < 200):
        times.append(once(call))
    low, *_, high = statistics.quantiles(times, n=5)
    return {"median_s": statistics.median(times), "low_s": low, "high_s": high, "calls": len(times)}


def _once_on_cpu(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _once_on_gpu(call: Callable[[], Any]) -> float:
    # 256 MiB through an L2 of 50 to 60
    torch.empty(2**26, dtype=torch.int32, device="cuda").zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _line(case: dict[str, Any]) -> str:
    parts = [
        f"{way} {case[way]['forward']['median_s'] * 1e6:,.0f} /"
        f" {case[way]['both']['median_s'] * 1e6:,.0f} us"
        for way in COLOURS
        if way in case
    ]
    return (
        f"{case['operation']:15} B {case['B']:>6,} U {case['U']:>5,}  forward / both: "
        + ", ".join(parts)
    )


def report(found: dict[str, Any]) -> Report:
    """Return one table per operation, and forward and backward time over B."""
    gpu = found["hardware"]["gpu"]
    remarks = ["Median microseconds (20 % to 80 %), GB/s in square brackets."]
    if found["device"] == "cpu":
        remarks.append(
            "On a CPU the kernels do not run; this is what runs in their place (eager), beside"
            " torch.compile of it."
        )
    ways = [way for way in COLOURS if way in found["cases"][0]]
    columns = [Column("B", "B"), Column("U", lambda row: row["U"] or None), Column("pass", "pass")]
    columns += [Column(way, way, _microseconds) for way in ways]
    blocks: list[str | Table] = []
    for name, what in OPERATIONS.items():
        rows = [
            {"B": case["B"], "U": case["U"], "pass": words} | {way: case[way][part] for way in ways}
            for case in found["cases"]
            if case["operation"] == name
            for part, words in (("forward", "forward"), ("both", "forward and backward"))
        ]
        blocks += [f"## {name}: {what}", Table(columns, rows)]
    drawings = [partial(_draw_operation, found["cases"], name) for name in OPERATIONS]
    title = f"Kernels, {found['precision']}, {gpu or 'CPU'}"
    return Report(title, remarks, blocks, drawings, size=(10, 3))


def _microseconds(result: dict[str, float]) -> str:
    median, low, high = (result[key] * 1e6 for key in ("median_s", "low_s", "high_s"))
    return f"{median:,.0f} ({low:,.0f} to {high:,.0f}) [{result['GB_per_s']:,.1f}]"


def _draw_operation(cases: list[dict[str, Any]], name: str, axes: Any) -> None:
    """Draw forward and backward time over B, at the U nearest to that of Stage 1."""
    shown = [case for case in cases if case["operation"] == name and case["U"] in (0, 21)]
    rows = [case["B"] for case in shown]
    for way, colour in COLOURS.items():
        if way in shown[0]:
            micros = [case[way]["both"]["median_s"] * 1e6 for case in shown]
            axes.plot(rows, micros, "o-", color=colour, label=way)
    axes.set(xscale="log", yscale="log")
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("rows B" + ("" if name == "multitask_loss" else ", U = 21"))
    if name == next(iter(OPERATIONS)):
        axes.set_ylabel("forward and backward, µs")
        axes.legend(frameon=False)
