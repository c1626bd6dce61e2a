"""Operations under torch's profiler, by phase of the step and by kind.

Every change of phase leaves an event that names the new one (`leave_marks`); an operation belongs
to the phase that started it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch.profiler import record_function

from benchmarks.harness.timing import PHASES, Phases

Ops = dict[str, dict[str, float]]  # calls and seconds by name
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
ENCODER = ("encode", "backward: encoder")
OTHERS = tuple(phase for phase in PHASES if phase not in ENCODER)
MARK, OUTSIDE = "phase of the step: ", "outside"


def leave_marks(phases: Phases) -> None:
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
    """Return calls and seconds of each operation in each phase, and what a GPU's driver was asked.

    On a CPU what is left of a phase is Python's.
    """
    begun = sorted(
        (event.time_range.start, event.name.removeprefix(MARK))
        for event in events
        if event.name.startswith(MARK)
    )
    times = [time for time, _ in begun]
    phases: dict[str, Ops] = {
        phase: defaultdict(lambda: {"calls": 0.0, "seconds": 0.0}) for phase in PHASES
    }
    asked: Ops = defaultdict(lambda: {"calls": 0.0})
    drivers = {name for names in ASKED.values() for name in names}
    for event in events:
        last = bisect_right(times, event.time_range.start) - 1
        if event.name.startswith(MARK) or last < 0 or begun[last][1] == OUTSIDE:
            continue
        if event.name in drivers:
            asked[event.name]["calls"] += 1
            continue
        op = phases[begun[last][1]][event.name.removeprefix("aten::")]
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        op["calls"] += 1
        op["seconds"] += micros / 1e6
    if not on_gpu:
        _add_python(phases, begun)
    return {phase: dict(ops) for phase, ops in phases.items()}, dict(asked)


def _add_python(phases: dict[str, Ops], begun: Sequence[tuple[float, str]]) -> None:
    """Add what is left of each phase, given in microseconds when which phase began."""
    for (start, phase), (stop, _) in pairwise(begun):
        if phase != OUTSIDE:
            phases[phase][PYTHON]["seconds"] += (stop - start) / 1e6
    for ops in phases.values():
        ops[PYTHON]["seconds"] -= sum(op["seconds"] for name, op in ops.items() if name != PYTHON)


def by_kind(phases: dict[str, Ops], wanted: Iterable[str] = PHASES) -> Ops:
    """Return calls and seconds of each kind of operation in some phases."""
    kinds = {kind: {"calls": 0.0, "seconds": 0.0} for kind in KINDS}
    for name, op in together(phases, wanted).items():
        kind = COMPILED if name.startswith(OF_COMPILED) else KIND_OF.get(name, REST)
        for key, value in op.items():
            kinds[kind][key] += value
    return kinds


def together(phases: dict[str, Ops], wanted: Iterable[str]) -> Ops:
    """Return calls and seconds of each operation in some phases."""
    ops: Ops = defaultdict(lambda: {"calls": 0.0, "seconds": 0.0})
    for phase in wanted:
        for name, op in phases[phase].items():
            for key, value in op.items():
                ops[name][key] += value
    return ops


def seconds_of(ops: Ops) -> float:
    """Return the seconds of all operations."""
    return sum(op["seconds"] for op in ops.values())
