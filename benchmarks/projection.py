"""What training would take on GPUs: counted work times the rates of `gpu_rates`.

Kernels take arithmetic, a start of each product, and reading and writing of what lies between
products. A step has one of two forms. Taken from Python, kernels are queued while others compute,
so it costs the larger of the kernels' time and launches x the host's seconds for one. Replayed from
a CUDA graph, it costs the kernels' time and nodes x the seconds from one node to the next.

Not counted, which flatters per-row training most: padding, micro-batches, and what the encoder
reads and writes between its products.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.costmodel import Architecture
from benchmarks.gpu_rates import values

FORMS = {"graph": "replayed from a CUDA graph", "python": "taken from Python"}
EPOCHS = 15
ROWS_BY_STEP = 20  # a batch is at most one twentieth of the table
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Step:
    """The seconds of a step's parts on one of several GPUs."""

    form: str
    kernels_s: dict[str, float]
    asked_s: float  # all launches, or all nodes
    sent_s: dict[str, float]  # what ranks wait for

    @property
    def parts(self) -> dict[str, float]:
        """The parts that a step is long by."""
        if self.form == "graph":
            return {**self.kernels_s, "nodes": self.asked_s, **self.sent_s}
        # the smaller one is hidden behind the larger one
        queued = sum(self.kernels_s.values()) > self.asked_s
        return {**(self.kernels_s if queued else {"launches": self.asked_s}), **self.sent_s}

    @property
    def seconds(self) -> float:
        """The step's."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Projection:
    """A whole training run that was not made."""

    step: Step
    step_s: dict[str, float]  # by what limits it
    hours: float
    gpu_hours: float
    distinct_per_step: float

    @property
    def limit(self) -> str:
        """What takes the largest part of a step."""
        return max(self.step_s, key=self.step_s.__getitem__)


def distinct_expected(num_strings: float, rows: float) -> float:
    """Return how many of S equally likely strings B rows are expected to hold.

    S (1 - (1 - 1/S)^B).
    """
    if num_strings <= 1:
        return 1.0
    return -num_strings * math.expm1(rows * math.log1p(-1 / num_strings))


def project(
    architecture: Architecture,
    rows: float,
    strings: float,
    gpus: int,
    naive: bool,
    form: str = "graph",
    assumed: dict[str, float] | None = None,
) -> Projection:
    """Return the projected training of a table on so many GPUs, per row or once per step.

    Once per step, ranks share the strings of the global step and gather their vectors, or each
    encodes all of them, or each those of its own rows (modes per_step with and without sharding,
    and per_microbatch with one micro-batch): whichever is the fastest.
    """
    g = values(assumed)
    own = max(1.0, min(g["rows_per_gpu"], rows / ROWS_BY_STEP / gpus))
    distinct = own if naive else distinct_expected(strings, own * gpus)
    encoded = [(distinct, 0.0)]  # strings that a rank encodes, vectors that it gathers
    if gpus > 1 and not naive:
        encoded += [(distinct / gpus, distinct), (distinct_expected(strings, own), 0.0)]
    length = g["string_tokens"]
    step = min(
        (
            Step(
                form,
                kernel_seconds(architecture, g, own, num * length, num * length**2),
                asking(g, form),
                communication(architecture, g, gathered, gpus),
            )
            for num, gathered in encoded
        ),
        key=lambda step: step.seconds,
    )
    parts = step.parts
    reading = own * g["row_bytes"] / g["storage_bytes_per_s"]
    if rows * g["row_bytes"] > g["resident_bytes"] and reading > step.seconds:
        parts = {"reading rows": reading}
    seconds = EPOCHS * math.ceil(rows / (own * gpus)) * sum(parts.values())
    return Projection(step, parts, seconds / 3600, gpus * seconds / 3600, distinct)


def kernel_seconds(
    architecture: Architecture,
    g: dict[str, float],
    rows: float,
    tokens: float,
    token_pairs: float,
) -> dict[str, float]:
    """Return the seconds of a step's kernels on one GPU, without what lies between them."""
    num_products = architecture.layers * g["products_per_encoder_layer"] + g["fusion_products"]
    # weight, gradient and two moments in fp32, read and written
    update_bytes = 28 * architecture.trainable_parameters
    return {
        "encoder arithmetic": architecture.encoder_flop(tokens, token_pairs)
        / g["encoder_flop_per_s"],
        "fusion arithmetic": architecture.fusion_flop(rows) / g["fusion_flop_per_s"],
        "starts of products": num_products * g["product_s"],
        "between products": rows * g["fusion_bytes_per_row"] / g["memory_bytes_per_s"],
        "update": update_bytes / g["memory_bytes_per_s"],
    }


def asking(g: dict[str, float], form: str) -> float:
    """Return the seconds of a step's launches, or from node to node of its graph."""
    if form == "graph":
        return g["nodes_per_step"] * g["node_s"]
    return g["launches_per_step"] * g["launch_s"]


def communication(
    architecture: Architecture, g: dict[str, float], gathered: float, gpus: int
) -> dict[str, float]:
    """Return the seconds that ranks wait for each other: gradients, and vectors they gather.

    Gathering includes the reduction of the vectors' gradient.
    """
    if gpus == 1:
        return {}
    rate = g["node_bytes_per_s"] if gpus <= GPUS_PER_NODE else g["network_bytes_per_s"]
    latency = 2 * g["collective_latency_s"] * math.log2(gpus)
    parts = {"gradient reduction": 8 * architecture.trainable_parameters / rate + latency}
    if gathered:
        parts["vector gathering"] = 8 * gathered * architecture.width / rate + latency
    return parts


def table_sizes() -> tuple[Sequence[float], Sequence[float], Sequence[int]]:
    """Return the rows, strings and GPUs that are projected."""
    return (1e6, 1e8, 1e10, 1e12), (10, 1e3, 1e5, 1e7), (1, 8, 64, 1024)


def projections(architecture: Architecture) -> list[dict[str, Any]]:
    """Return both loops in both forms, of every size of table, strings and cluster."""
    found = []
    for rows, strings, gpus, form in product(*table_sizes(), FORMS):
        entry: dict[str, Any] = {"rows": rows, "strings": strings, "gpus": gpus, "form": form}
        for name, naive in (("naive", True), ("ours", False)):
            made = project(architecture, rows, strings, gpus, naive, form)
            entry[name] = {
                "hours": made.hours,
                "gpu_hours": made.gpu_hours,
                "limit": made.limit,
                "step_s": made.step_s,
                "distinct": made.distinct_per_step,
            }
        found.append(entry)
    return found


def reference_steps(architecture: Architecture) -> list[dict[str, Any]]:
    """Return the step of Stage 1's 21 strings in both loops and forms, on one and eight GPUs."""
    large, strings = 1e8, 21  # a table that leaves a step all its rows
    g = values()
    found = []
    for gpus, naive, form in product((1, GPUS_PER_NODE), (False, True), FORMS):
        step = project(architecture, large, strings, gpus, naive, form).step
        found.append(
            {
                "gpus": gpus,
                "loop": "per row" if naive else "once per step",
                "form": form,
                "rows": g["rows_per_gpu"],
                "strings": strings,
                "kernel_s": sum(step.kernels_s.values()),
                "asked": g["nodes_per_step" if form == "graph" else "launches_per_step"],
                "asked_s": step.asked_s,
                "communication_s": sum(step.sent_s.values()),
                "step_s": step.seconds,
                "rows_per_s": gpus * g["rows_per_gpu"] / step.seconds,
            }
        )
    return found


def full_size(measured: Architecture) -> Architecture:
    """Return the architecture that is projected: polyBERT's encoder and Stage 1's network.

    That holds whatever a quick run measured.
    """
    full = Architecture(600, 12, 512, 13_400_000, 14_100_000)
    return measured if (measured.width, measured.layers) == (full.width, full.layers) else full
