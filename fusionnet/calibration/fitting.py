"""What labels say of probabilities: the temperature that fits, and the threshold of the best F1.

Axes: n rows, K classes; a binary target has one column, the chance of the positive.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar

from fusionnet.calibration.chances import all_classes, tempered

LEAST_LABELS = 50  # of rows; with fewer the temperature is 1
_LOG_RANGE = 3.0  # of the temperature's logarithm
_PRIOR = 0.5  # its standard deviation before any row is seen: few rows move it little
_TINY = 1e-7


def fitted_temperature(chances: Float[np.ndarray, "n K"], label: Int[np.ndarray, " n"]) -> float:
    """Return the temperature of the greatest likelihood; 1 for few labels, or those of one class.

    A normal prior on its logarithm keeps it near 1 where few rows speak.
    """
    if len(label) < LEAST_LABELS or len(np.unique(label)) < 2:
        return 1.0
    given = torch.from_numpy(chances.astype(np.float64))
    rows = torch.arange(len(label))
    place = torch.from_numpy(label.astype(np.int64))

    def cost(log_temperature: float) -> float:
        found = tempered(given, float(np.exp(log_temperature)))
        of_label = all_classes(found)[rows, place].clamp_min(_TINY)
        return float(-of_label.log().sum()) + log_temperature**2 / (2 * _PRIOR**2)

    bounds = (-_LOG_RANGE, _LOG_RANGE)
    return float(np.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x))


def best_threshold(chance: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Return the probability above which calling rows positive has the greatest F1 on them.

    It is in the middle between two chances; 0.5 where there is no positive.
    """
    if not positive.any():
        return 0.5
    order = np.argsort(-chance, kind="stable")
    hits = np.cumsum(positive[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + positive.sum())
    ordered = chance[order]
    is_last_of_ties = np.append(np.diff(ordered) != 0, True)
    best = int(np.argmax(np.where(is_last_of_ties, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float((ordered[best] + below) / 2)
