"""What a GPU is taken to do per second, each number with its source.

Measured are single kernels on one H100, none of them a step; the rest is from data sheets, counted
in the code, or assumed. One number comes from a step: the host's seconds per launch, for which
there is no smaller measurement; `h100` projects that step without it.
"""

import statistics
from dataclasses import dataclass

H100 = "one H100 (80 GB HBM3, 16 cores, torch 2.11, bf16)"
# seconds of single products (rows, width in, width out), bf16, on that H100
ENCODER_PRODUCTS = {(843, 600, 600): 5.2e-6, (843, 600, 1800): 8.5e-6}
FUSION_PRODUCTS = {
    (8192, 512, 512): 10.2e-6,
    (8192, 512, 2048): 32e-6,
    (8192, 2048, 512): 25e-6,
}
NODE_S = 0.95e-6  # of a graph's node that adds 1 to 1,024 numbers
GELU_BYTES_PER_S = 2.6e12  # on 8,192 x 2,048 in bf16
STEP_S, STEP_LAUNCHES = 75.5e-3, 975  # taken from Python through DeepSpeed's engine


@dataclass(frozen=True)
class Assumption:
    """A number that the projection takes for granted, and where it comes from."""

    value: float
    unit: str
    source: str


def line_of(products: dict[tuple[int, int, int], float]) -> tuple[float, float]:
    """Return FLOP per second and seconds at no FLOP: the line through products of two sizes.

    Products of the same number of operations count as their mean.
    """
    by_flop: dict[int, list[float]] = {}
    for (rows, width_in, width_out), seconds in products.items():
        by_flop.setdefault(2 * rows * width_in * width_out, []).append(seconds)
    (small, short), (large, long) = sorted(
        (flop, statistics.mean(seconds)) for flop, seconds in by_flop.items()
    )
    rate = (large - small) / (long - short)
    return rate, short - small / rate


_ENCODER_RATE, _ENCODER_START_S = line_of(ENCODER_PRODUCTS)
_FUSION_RATE, _FUSION_START_S = line_of(FUSION_PRODUCTS)

GPU = {
    "encoder_flop_per_s": Assumption(
        _ENCODER_RATE,
        "FLOP/s",
        f"measured on {H100}: 843 x 600 x 600 in 5.2 us, 843 x 600 x 1,800 in 8.5 us",
    ),
    "fusion_flop_per_s": Assumption(
        _FUSION_RATE,
        "FLOP/s",
        "measured there: 8,192 x 512 x 512 in 10.2 us, x 512 x 2,048 in 32, x 2,048 x 512 in 25",
    ),
    "product_s": Assumption(
        statistics.mean((_ENCODER_START_S, _FUSION_START_S)) - NODE_S,
        "s per product",
        "measured there: what those products take beyond arithmetic and a node",
    ),
    "memory_bytes_per_s": Assumption(
        GELU_BYTES_PER_S, "B/s", "measured there: GELU on 8,192 x 2,048 (data sheet: 3.35e12)"
    ),
    "node_s": Assumption(
        NODE_S, "s per node", "measured there: a graph's node that adds 1 to 1,024 numbers"
    ),
    "launch_s": Assumption(
        STEP_S / STEP_LAUNCHES,
        "s per launch",
        "measured there on the host: 75.5 ms a step through DeepSpeed's engine, 975 launches",
    ),
    "launches_per_step": Assumption(
        STEP_LAUNCHES, "launches", "counted there: a step taken from Python"
    ),
    "nodes_per_step": Assumption(579, "nodes", "counted there: a step replayed from one graph"),
    "products_per_encoder_layer": Assumption(
        8, "products", "counted: q, k and v as one, output, two feed-forward; forward and backward"
    ),
    "fusion_products": Assumption(
        108, "products", "counted: 36 linear layers of Stage 1's network, three products each"
    ),
    "fusion_bytes_per_row": Assumption(
        4 * 2 * (6 * 2048 + 25 * 512),
        "B",
        "counted: what fused GELU, norms, dropout and sums for biases of four layers read and"
        " write, 6 x 2,048 and 25 x 512 elements of 2 B each",
    ),
    "evaluation_bytes_per_row": Assumption(
        4 * 2 * (2 * 2048 + 8 * 512),
        "B",
        "counted: GELU and norms of the forward pass alone, 2 x 2,048 and 8 x 512 elements",
    ),
    "node_bytes_per_s": Assumption(
        450e9, "B/s", "NVIDIA H100 SXM data sheet: NVLink, one way; up to eight GPUs"
    ),
    "network_bytes_per_s": Assumption(
        50e9, "B/s", "400 Gb/s InfiniBand per GPU; more than eight GPUs"
    ),
    "collective_latency_s": Assumption(20e-6, "s per doubling of ranks", "assumed"),
    "resident_bytes": Assumption(
        40e9, "B", "assumed: half of the GPU's memory holds rows; a larger table is read"
    ),
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


def values(changed: dict[str, float] | None = None) -> dict[str, float]:
    """Return the assumptions' values, some of them changed."""
    return {name: assumption.value for name, assumption in GPU.items()} | (changed or {})
