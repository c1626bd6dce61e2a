"""What training would take where nobody has measured: counted work times assumed rates.

Assumed are a GPU's rates, in one table with the source of each. On a GPU kernels are queued while
others compute, so a part costs the larger of its arithmetic and its launches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.costmodel import Architecture


@dataclass(frozen=True)
class Assumption:
    """A number that was not measured here, and where it comes from."""

    value: float
    unit: str
    source: str


GPU = {
    "peak_flop_per_s": Assumption(
        989e12, "FLOP/s", "NVIDIA H100 SXM data sheet: bf16 tensor cores, dense"
    ),
    "encoder_share_of_peak": Assumption(
        0.25, "of peak", "assumed: matrices of width 600 and short sequences"
    ),
    "fusion_share_of_peak": Assumption(
        0.35, "of peak", "assumed: matrices of 512 x 2,048 over thousands of rows"
    ),
    "memory_bytes_per_s": Assumption(3.35e12, "B/s", "NVIDIA H100 SXM data sheet"),
    "launch_s": Assumption(5e-6, "s", "assumed: one queued kernel from eager PyTorch"),
    "kernels_per_encoder_layer": Assumption(
        70, "kernels", "assumed: forward and backward with LoRA on three projections"
    ),
    "kernels_per_micro_batch": Assumption(
        400, "kernels", "assumed: adapters, fusion layers, heads and loss, forward and backward"
    ),
    "network_bytes_per_s": Assumption(50e9, "B/s", "400 Gb/s InfiniBand per GPU"),
    "collective_latency_s": Assumption(20e-6, "s per doubling of ranks", "assumed"),
    "storage_bytes_per_s": Assumption(
        0.25e9,
        "B/s per GPU",
        "assumed: 2 GB/s per node of eight, read ahead while the GPU computes",
    ),
    "row_bytes": Assumption(
        150,
        "B",
        "19 features, 7 targets, ids and weight of the reference cohort, before compression",
    ),
    "string_tokens": Assumption(40, "tokens", "mean of the reference cohort's strings"),
    "rows_per_gpu": Assumption(
        8192,
        "rows per step",
        "assumed: the global batch grows with the GPUs, up to a twentieth of the table",
    ),
}
EPOCHS = 15
ROWS_BY_STEP = 20  # a batch is at most one twentieth of the table


@dataclass(frozen=True)
class Projection:
    """A whole training run that was not made."""

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
    assumed: dict[str, float] | None = None,
) -> Projection:
    """Return the projected training of a table on so many GPUs, per row or once per step.

    Once per step, ranks share the strings of the global step and gather their vectors, or each
    encodes all of them, or each those of its own rows (modes per_step with and without sharding,
    and per_microbatch with one micro-batch): whichever is the fastest.
    """
    g = {name: assumption.value for name, assumption in GPU.items()} | (assumed or {})
    own = max(1.0, min(g["rows_per_gpu"], rows / ROWS_BY_STEP / gpus))
    distinct = own if naive else distinct_expected(strings, own * gpus)
    options = [_encoding(architecture, g, distinct, 0.0, gpus)]
    if gpus > 1 and not naive:
        options += [
            _encoding(architecture, g, distinct / gpus, distinct, gpus),
            _encoding(architecture, g, distinct_expected(strings, own), 0.0, gpus),
        ]
    encoding = min(options, key=lambda parts: sum(parts.values()))
    step = {**encoding, **_rest_of_step(architecture, g, own, gpus)}
    reading = own * g["row_bytes"] / g["storage_bytes_per_s"]
    if reading > sum(step.values()):
        step = {"reading rows": reading}
    seconds = EPOCHS * math.ceil(rows / (own * gpus)) * sum(step.values())
    return Projection(step, seconds / 3600, gpus * seconds / 3600, distinct)


def _rest_of_step(
    architecture: Architecture, g: dict[str, float], rows: float, gpus: int
) -> dict[str, float]:
    """Return the seconds of a step's other parts: fusion, update and gradient reduction."""
    # weight, gradient and two moments in fp32, read and written
    update_bytes = 28 * architecture.trainable_parameters
    reduced = 0.0
    if gpus > 1:
        reduced = 8 * architecture.trainable_parameters / g["network_bytes_per_s"]
        reduced += 2 * g["collective_latency_s"] * math.log2(gpus)
    rate = g["fusion_share_of_peak"] * g["peak_flop_per_s"]
    arithmetic = architecture.fusion_flop(rows) / rate
    launches = g["kernels_per_micro_batch"] * g["launch_s"]
    # the smaller one is hidden behind the larger one
    name = "fusion arithmetic" if arithmetic > launches else "launches"
    return {
        name: max(arithmetic, launches),
        "update": update_bytes / g["memory_bytes_per_s"],
        "gradient reduction": reduced,
    }


def _encoding(
    architecture: Architecture, g: dict[str, float], strings: float, gathered: float, gpus: int
) -> dict[str, float]:
    """Return the seconds of a step's encoding: arithmetic or launches, and gathering of vectors.

    Gathering includes the reduction of their gradient.
    """
    length = g["string_tokens"]
    flop = architecture.encoder_flop(strings * length, strings * length**2)
    arithmetic = flop / (g["encoder_share_of_peak"] * g["peak_flop_per_s"])
    launches = architecture.layers * g["kernels_per_encoder_layer"] * g["launch_s"]
    vectors = 0.0
    if gathered:
        vectors = 8 * gathered * architecture.width / g["network_bytes_per_s"]
        vectors += 2 * g["collective_latency_s"] * math.log2(gpus)
    name = "encoder arithmetic" if arithmetic > launches else "encoder launches"
    return {name: max(arithmetic, launches), "vector gathering": vectors}


def table_sizes() -> tuple[Sequence[float], Sequence[float], Sequence[int]]:
    """Return the rows, strings and GPUs that are projected."""
    return (1e6, 1e8, 1e10, 1e12), (10, 1e3, 1e5, 1e7), (1, 8, 64, 1024)


def projections(architecture: Architecture) -> list[dict[str, Any]]:
    """Return naive and once-per-step training of every size of table, strings and cluster."""
    found = []
    for rows, strings, gpus in product(*table_sizes()):
        entry: dict[str, Any] = {"rows": rows, "strings": strings, "gpus": gpus}
        for name, naive in (("naive", True), ("ours", False)):
            made = project(architecture, rows, strings, gpus, naive)
            entry[name] = {
                "hours": made.hours,
                "gpu_hours": made.gpu_hours,
                "limit": made.limit,
                "step_s": made.step_s,
                "distinct": made.distinct_per_step,
            }
        found.append(entry)
    return found


def full_size(measured: Architecture) -> Architecture:
    """Return the architecture that is projected: polyBERT's encoder and Stage 1's network.

    That holds whatever a quick run measured.
    """
    full = Architecture(600, 12, 512, 13_400_000, 14_100_000)
    return measured if (measured.width, measured.layers) == (full.width, full.layers) else full
