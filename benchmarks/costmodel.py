"""What a step costs: counted work times fitted or assumed rates.

Counted, of one rank's step: floating-point operations of the encoder and of the fusion network,
encoder passes, micro-batches, and the step itself (update, bookkeeping). With the encoder frozen
but for LoRA, its backward pass needs the gradient of its activations and not of its weights, so it
costs one forward pass and not two.

Fitted, on measured steps: seconds per unit of each, none negative, every step weighing alike
whatever it takes (relative errors).

Assumed, where nothing was measured: a GPU's rates, in one table with the source of each. On a GPU
kernels are queued while others compute, so a part costs the larger of its arithmetic and its
launches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

TERMS = ("encoder FLOP", "fusion FLOP", "encoder passes", "micro-batches", "steps")


@dataclass(frozen=True)
class Architecture:
    """Sizes that decide the work."""

    width: int
    layers: int
    feedforward: int
    fusion_parameters: int  # of the fusion network, all of them matrices that every row meets once
    trainable_parameters: int

    def encoder_flop(self, tokens: float, token_pairs: float, layers: float | None = None) -> float:
        """Return the operations of a forward pass and of the activations' gradient: 2 per weight
        and token, 4 per width and pair of tokens, each twice.
        """
        weights = 4 * self.width**2 + 2 * self.width * self.feedforward
        return (
            2
            * (self.layers if layers is None else layers)
            * (2 * weights * tokens + 4 * self.width * token_pairs)
        )

    def fusion_flop(self, rows: float) -> float:
        """Return the operations of forward and backward: 6 per parameter and row."""
        return 6 * self.fusion_parameters * rows


def features(
    architecture: Architecture,
    rows: float,
    tokens: float,
    token_pairs: float,
    passes: float,
    micro_batches: float,
    layers: float,
) -> list[float]:
    """Return the counted work of a step, in the order of TERMS; `layers` are those of the encoder
    that run.
    """
    return [
        architecture.encoder_flop(tokens, token_pairs, layers),
        architecture.fusion_flop(rows),
        passes,
        micro_batches,
        1.0,
    ]


def fit(
    work: Float[np.ndarray, "C K"], seconds: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " K"]:
    """Return the seconds per unit of each kind of work, none negative, of the least squared
    relative error.
    """
    relative = np.asarray(work) / np.asarray(seconds)[:, None]
    # FLOP and passes differ by ten orders of magnitude
    scale = np.maximum(relative.max(0), np.finfo(float).tiny)
    rates, _ = nnls(relative / scale, np.ones(len(relative)))
    return rates / scale


def relative_errors(
    work: Float[np.ndarray, "C K"], seconds: Float[np.ndarray, " C"], rates: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " C"]:
    """Return (predicted - measured) / measured."""
    return np.asarray(work) @ rates / np.asarray(seconds) - 1


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
    """Return how many of S equally likely strings a step of B rows is expected to hold: S (1 - (1 -
    1/S)^B).
    """
    return (
        -num_strings * math.expm1(rows * math.log1p(-1 / num_strings)) if num_strings > 1 else 1.0
    )


def project(
    architecture: Architecture,
    rows: float,
    strings: float,
    gpus: int,
    naive: bool,
    assumed: dict[str, float] | None = None,
) -> Projection:
    """Return the projected training of a table of so many rows and strings on so many GPUs, per row
    or once per step.

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
    # weight, gradient and two moments in fp32, read and written
    update_bytes = 28 * architecture.trainable_parameters
    reduced = (
        0.0
        if gpus == 1
        else 8 * architecture.trainable_parameters / g["network_bytes_per_s"]
        + 2 * g["collective_latency_s"] * math.log2(gpus)
    )
    step = {
        **encoding,
        "fusion arithmetic": architecture.fusion_flop(own)
        / (g["fusion_share_of_peak"] * g["peak_flop_per_s"]),
        "launches": g["kernels_per_micro_batch"] * g["launch_s"],
        "update": update_bytes / g["memory_bytes_per_s"],
        "gradient reduction": reduced,
    }
    larger, smaller = (
        ("fusion arithmetic", "launches")
        if step["fusion arithmetic"] > step["launches"]
        else ("launches", "fusion arithmetic")
    )
    step[smaller] = 0.0  # hidden behind the larger one
    reading = own * g["row_bytes"] / g["storage_bytes_per_s"]
    if reading > sum(step.values()):
        step = {"reading rows": reading, larger: 0.0}
    seconds = EPOCHS * math.ceil(rows / (own * gpus)) * sum(step.values())
    return Projection(step, seconds / 3600, gpus * seconds / 3600, distinct)


def _encoding(
    architecture: Architecture, g: dict[str, float], strings: float, gathered: float, gpus: int
) -> dict[str, float]:
    """Return the parts of a step's encoding: arithmetic or launches, and the gathering of vectors
    with the reduction of their gradient.
    """
    length = g["string_tokens"]
    arithmetic = architecture.encoder_flop(strings * length, strings * length**2) / (
        g["encoder_share_of_peak"] * g["peak_flop_per_s"]
    )
    launches = architecture.layers * g["kernels_per_encoder_layer"] * g["launch_s"]
    vectors = (
        8 * gathered * architecture.width / g["network_bytes_per_s"]
        + 2 * g["collective_latency_s"] * math.log2(gpus)
        if gathered
        else 0.0
    )
    name = "encoder arithmetic" if arithmetic > launches else "encoder launches"
    return {name: max(arithmetic, launches), "vector gathering": vectors}


def table_sizes() -> tuple[Sequence[float], Sequence[float], Sequence[int]]:
    """Return the rows, strings and GPUs that are projected."""
    return (1e6, 1e8, 1e10, 1e12), (10, 1e3, 1e5, 1e7), (1, 8, 64, 1024)
