"""A step and evaluation as projected, beside what one H100 showed.

The projection takes arithmetic, bandwidth and single kernels from `gpu_rates`, and nothing of a
step but how many launches and nodes it has. So the host's seconds per launch are not those of the
measured step, as in `gpu_rates`, but what was assumed before there was one.
"""

from typing import Any

from benchmarks.costmodel import Architecture
from benchmarks.gpu_rates import values
from benchmarks.projection import Step, asking, kernel_seconds

ROWS, STRINGS, TOKENS = 8190, 21, 843
ASSUMED_LAUNCH_S = 5e-6  # one queued kernel from eager PyTorch
ASSUMED_KERNELS = (70, 400)  # per encoder layer, and of the network
KERNELS = 1048  # of a step taken from Python
# what was measured of that step, in seconds
PYTHON_STEP_S, PYTHON_KERNEL_S = 75.5e-3, 6.55e-3
GRAPH_STEP_S, TRAINING_STEP_S, GRAPH_KERNEL_S = 5.26e-3, 4.84e-3, 4.40e-3
EVALUATED_ROWS_PER_S = {8192: 2.16e6, 65_536: 8.16e6, 262_144: 5.86e6}


def compared(architecture: Architecture) -> list[dict[str, Any]]:
    """Return what was projected and measured, by name, in the units that they are shown in."""
    g = values({"launch_s": ASSUMED_LAUNCH_S})
    # as if the strings were of one length
    kernels = kernel_seconds(architecture, g, ROWS, TOKENS, TOKENS**2 / STRINGS)
    python, graph = (
        Step(form, kernels, asking(g, form), {}).seconds for form in ("python", "graph")
    )
    kernel_s = sum(kernels.values())
    per_layer, others = ASSUMED_KERNELS
    nodes = g["nodes_per_step"]
    rows = [
        ("kernels of a step from Python", "", architecture.layers * per_layer + others, KERNELS),
        ("host, a launch", "us", ASSUMED_LAUNCH_S, values()["launch_s"]),
        ("kernel time, from Python", "ms", kernel_s, PYTHON_KERNEL_S),
        ("step from Python", "ms", python, PYTHON_STEP_S),
        ("from node to node of the graph", "us", g["node_s"], _gap(GRAPH_STEP_S, nodes)),
        ("the same in training", "us", g["node_s"], _gap(TRAINING_STEP_S, nodes)),
        ("kernel time, replayed", "ms", kernel_s, GRAPH_KERNEL_S),
        ("step replayed, benchmark", "ms", graph, GRAPH_STEP_S),
        ("step replayed, training", "ms", graph, TRAINING_STEP_S),
    ]
    evaluation = 1 / evaluation_s_per_row(architecture, g)
    rows += [
        (f"evaluation at {batch:,} rows", "rows/s", evaluation, rate)
        for batch, rate in EVALUATED_ROWS_PER_S.items()
    ]
    return [
        {"name": name, "unit": unit, "projected": projected, "measured": measured}
        for name, unit, projected, measured in rows
    ]


def evaluation_s_per_row(architecture: Architecture, g: dict[str, float]) -> float:
    """Return the seconds of a row in large batches: a third of training's arithmetic, and bytes."""
    arithmetic = architecture.fusion_flop(1) / 3 / g["fusion_flop_per_s"]
    return arithmetic + g["evaluation_bytes_per_row"] / g["memory_bytes_per_s"]


def _gap(step_s: float, nodes: float) -> float:
    """Return the seconds between two nodes that a replay's time and its kernels' leave."""
    return (step_s - GRAPH_KERNEL_S) / nodes
