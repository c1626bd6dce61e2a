"""What a step costs: counted work times fitted or assumed rates.

Counted, of one rank's step: floating-point operations of the encoder and of the fusion network,
encoder passes, micro-batches, and the step itself (update, bookkeeping). With the encoder frozen
but for LoRA, its backward pass needs the gradient of its activations and not of its weights, so it
costs one forward pass and not two.

Fitted, on measured steps: seconds per unit of each, none negative, every step weighing alike
whatever it takes (relative errors). A third of them is held out, and judges the fit.
"""

import statistics
from dataclasses import dataclass
from typing import Any

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
        """Return the operations of a forward pass and of the activations' gradient.

        2 per weight and token, 4 per width and pair of tokens, each twice.
        """
        weights = 4 * self.width**2 + 2 * self.width * self.feedforward
        passes = 2 * (self.layers if layers is None else layers)
        return passes * (2 * weights * tokens + 4 * self.width * token_pairs)

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
    """Return the counted work of a step, in the order of TERMS.

    `layers` are those of the encoder that run.
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
    """Return the seconds per unit of each kind of work, none negative, of least relative error.

    C measured steps, K kinds of work (TERMS).
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


def check(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fitted rates, the cases with their errors, and the errors on those held out.

    A third of the cases takes no part in the fit.
    """
    held_out = np.random.default_rng(0).permutation(len(cases)) % 3 == 0
    work = np.array([case["work"] for case in cases])
    seconds = np.array([case["seconds"]["median"] for case in cases])
    rates = fit(work[~held_out], seconds[~held_out])
    errors = relative_errors(work, seconds, rates)
    for case, error, held in zip(cases, errors, held_out, strict=True):
        case |= {"error": float(error), "held_out": bool(held)}
    noise = [
        (case["seconds"]["p80"] - case["seconds"]["p20"]) / case["seconds"]["median"]
        for case in cases
    ]
    return {
        "rates": dict(zip(TERMS, rates.tolist(), strict=True)),
        "cases": cases,
        "held_out_error": _size_of(errors[held_out]),
        "fitted_error": _size_of(errors[~held_out]),
        "noise": statistics.median(noise),
    }


def _size_of(errors: Float[np.ndarray, " C"]) -> dict[str, float]:
    sizes = np.abs(errors)
    return {"median": float(np.median(sizes)), "largest": float(sizes.max())}
