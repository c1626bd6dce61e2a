"""Each kernel against eager PyTorch and torch.compile, forward and backward, over rows B and
distinct strings U.

Every case's outputs and gradients are checked against float64 before it is timed. Times are those
of one call at a time, as a training step makes them, the launches included; on a GPU the L2 cache
is cleared before each. GB/s counts what an operation must read and write at least, whoever computes
it, so that it can be held against the memory's own. On a CPU there is no kernel to time, only what
runs in its place.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import fusionnet.kernels as kernels
from benchmarks.harness.cells import Column, Table
from benchmarks.harness.pictures import COLORS
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from embedcache.encoder.dropout import dropout
from fusionnet.kernels import TaskTerm, reference

WIDTH, HIDDEN, NUM_CATEGORIES, P = 512, 384, 8, 0.1  # the sizes of configs/stage1.yaml
TERMS = (
    TaskTerm("smooth_l1", 7.0, 4.0, 0.5),
    TaskTerm("focal", gamma=2.0, pos_weight=3.17),
    *(TaskTerm("mse", 10.0, 5.0, factor=0.3, regulariser=0.3),) * 5,
)
OPERATIONS = {
    "gather_add": "string and category vectors to rows, plus a projected part and bias",
    "gather_dropout": "string vectors to rows, with dropout",
    "multitask_loss": f"{len(TERMS)} tasks: smooth-L1, focal and MSE, with gaps and row weights",
}
COLOURS = {"eager": COLORS["plain"], "compiled": COLORS["mid"], "kernel": COLORS["ours"]}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Case(NamedTuple):
    """One operation at one size: the ways to compute it, what they take, and the bytes that any of
    them must move.
    """

    calls: dict[str, Callable[..., Tensor]]
    inputs: list[Tensor]  # those with a gradient
    gradient: Tensor
    exact: Callable[..., Tensor]  # of the inputs in float64 and the output that is to be checked
    forward_bytes: int
    backward_bytes: int


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


def make_case(
    name: str, num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """Return an operation's case; random numbers are the same for the same size."""
    torch.manual_seed(num_rows + num_vectors)
    makers = {
        "gather_add": _gather_add,
        "gather_dropout": _gather_dropout,
        "multitask_loss": _multitask_loss,
    }
    case = makers[name](num_rows, num_vectors, dtype, device)
    return (
        case
        if kernels.has_kernels(case.gradient)
        else case._replace(calls={way: call for way, call in case.calls.items() if way != "kernel"})
    )


def _gather_add(num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device) -> Case:
    vectors, categories, rows, bias, gradient = (
        torch.randn(*shape, device=device, dtype=dtype)
        for shape in (
            (num_vectors, WIDTH),
            (NUM_CATEGORIES, WIDTH),
            (num_rows, WIDTH),
            (WIDTH,),
            (num_rows, WIDTH),
        )
    )
    index, category = (
        torch.randint(num, (num_rows,), device=device) for num in (num_vectors, NUM_CATEGORIES)
    )

    def plain(vectors: Tensor, categories: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        return reference.gather_add([(vectors, index), (categories, category)], [rows], bias)

    def kernel(vectors: Tensor, categories: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        return kernels.gather_add([(vectors, index), (categories, category)], [rows], bias)

    ways = {"eager": plain, "compiled": torch.compile(plain, dynamic=False), "kernel": kernel}
    size = rows.nbytes
    return Case(
        ways,
        [vectors, categories, rows, bias],
        gradient,
        lambda out, *inputs: plain(*inputs),
        2 * size + 2 * index.nbytes,
        size + 2 * index.nbytes,
    )


def _gather_dropout(
    num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device
) -> Case:
    hidden, gradient = (
        torch.randn(num, HIDDEN, device=device, dtype=dtype) for num in (num_vectors, num_rows)
    )
    index = torch.randint(num_vectors, (num_rows,), device=device)
    ways = {
        "eager": lambda hidden: dropout(hidden[index], P, training=True),
        "compiled": torch.compile(lambda hidden: F.dropout(hidden[index], P), dynamic=False),
        "kernel": lambda hidden: kernels.gather_dropout(hidden, index, P),
    }

    def exact(out: Tensor, hidden: Tensor) -> Tensor:
        dropped = (out == 0).double().mean().item()
        if abs(dropped - P) > 6 * math.sqrt(P * (1 - P) / out.numel()):
            raise AssertionError(f"{dropped:.4f} of the elements were dropped, not {P}")
        return hidden[index] * (out != 0) / (1 - P)

    return Case(
        ways,
        [hidden],
        gradient,
        exact,
        gradient.nbytes + index.nbytes,
        gradient.nbytes + index.nbytes,
    )


def _multitask_loss(num_rows: int, _: int, dtype: torch.dtype, device: torch.device) -> Case:
    outputs, targets = (torch.randn(num_rows, len(TERMS), device=device) for _ in range(2))
    targets = torch.where(torch.rand_like(targets) < 0.2, torch.nan, targets * 4 + 7)
    targets[:, 1] = (targets[:, 1] > 7).float()
    weight, s = (
        torch.where(torch.rand(num_rows, device=device) < 0.2, 5.0, 1.0),
        torch.randn(len(TERMS), device=device),
    )
    denominators = (weight.unsqueeze(1) * ~targets.isnan()).sum(0)

    def plain(outputs: Tensor, s: Tensor) -> Tensor:
        return reference.multitask_loss(outputs, targets, weight, denominators, s, TERMS, 1.0)[0]

    def kernel(outputs: Tensor, s: Tensor) -> Tensor:
        return kernels.multitask_loss(outputs, targets, weight, denominators, s, TERMS, 1.0)[0]

    ways = {"eager": plain, "compiled": torch.compile(plain, dynamic=False), "kernel": kernel}
    outputs = outputs.to(dtype)
    moved = outputs.nbytes + targets.nbytes + weight.nbytes
    return Case(
        ways,
        [outputs, s],
        torch.ones((), device=device),
        lambda out, *inputs: plain(*inputs),
        moved,
        outputs.nbytes,
    )


def measure(
    name: str,
    num_rows: int,
    num_vectors: int,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Return for each way its checked error, and time and GB/s of the forward pass and of forward
    and backward.
    """
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
    """Return the largest relative error of output and gradients against float64; a wrong result
    stops the benchmark.
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
    """Return median, 20 % and 80 % of a call's times, from at least 7 calls after 3 that warm
    up.
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
