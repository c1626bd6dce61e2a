"""Virtual patients: eleven correlated features with the published means, spreads and ranges.

A Gaussian copula on a scrambled Sobol sequence, with beta marginals that have the published range,
mean and spread by construction; patients are rejected until the derived features are in range too.
The sequence is even over any prefix, so that 60 patients already show the marginals, and patient i
of a seed is the same however many are drawn. Every sixth patient is labelled real, beginning with
the first, as in the published table (10 of 60), so that any number of patients has a real one; real
and synthetic ones come from the same distribution.

Marginals: the published summary of the original table; where it gives a range alone, mean and
spread are ours. Correlations are ours, with the signs that cardiology expects: dilation with a low
ejection fraction, a larger and more transmural scar with both, thinner walls in dilated hearts.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import beta, norm, qmc

REAL_EVERY = 6
_SOBOL_BATCH = 256


@dataclass(frozen=True)
class Marginal:
    """Mean, standard deviation and admissible range of one feature, in its unit."""

    name: str
    mean: float
    sd: float
    low: float
    high: float


# Drawn directly; ESV and the border-zone stress follow from them.
DRAWN = (
    Marginal("baseline_LVEF_pct", 32.4, 8.2, 15, 55),
    Marginal("baseline_GLS_pct", -14.8, 3.1, -25, -8),
    Marginal("baseline_EDV_mL", 198.3, 42.5, 100, 350),
    Marginal("scar_fraction_pct", 18.6, 7.3, 5, 40),
    Marginal("bz_fraction_pct", 9.4, 4.1, 2, 25),
    Marginal("healthy_stress_kPa", 14.0, 3.6, 5, 30),
    Marginal("stress_concentration", 2.6, 0.5, 1.5, 4.0),
    Marginal("transmurality", 0.58, 0.18, 0.2, 1.0),
    Marginal("wall_thickness_mm", 9.0, 2.0, 4, 15),
)
DERIVED = (
    Marginal("baseline_ESV_mL", 134.2, 38.7, 50, 250),
    Marginal("bz_stress_kPa", 36.4, 12.0, 10, 80),
)
_LVEF, _GLS, _EDV, _SCAR, _BZ, _HEALTHY, _CONCENTRATION, _TRANSMURALITY, _WALL = range(len(DRAWN))
_CORRELATIONS = {
    (_LVEF, _GLS): -0.6,
    (_LVEF, _EDV): -0.45,
    (_LVEF, _SCAR): -0.5,
    (_SCAR, _TRANSMURALITY): 0.55,
    (_SCAR, _BZ): 0.5,
    (_SCAR, _GLS): 0.4,
    (_EDV, _WALL): -0.35,
    (_EDV, _HEALTHY): 0.3,
    (_SCAR, _CONCENTRATION): 0.3,
    (_EDV, _SCAR): 0.3,
}
LVEF_TOLERANCE_PCT = 5.0  # how far LVEF may be from (EDV - ESV) / EDV: two readings of one heart
_LVEF_READING_SD_PCT = 1.5


@dataclass(frozen=True)
class Patients:
    """P patients; each feature is an array [P]."""

    ids: list[str]
    is_real: list[bool]
    features: dict[str, Float[np.ndarray, " P"]]

    def __len__(self) -> int:
        return len(self.ids)


def draw_patients(num_patients: int, seed: int) -> Patients:
    """Return the first `num_patients` patients of a seed's sequence."""
    sobol = qmc.Sobol(len(DRAWN) + 1, scramble=True, rng=np.random.default_rng([seed, 1]))
    accepted: list[np.ndarray] = []
    while sum(map(len, accepted)) < num_patients:
        accepted.append(_accepted(sobol.random(_SOBOL_BATCH)))
    values = np.concatenate(accepted)[:num_patients]
    names = [marginal.name for marginal in (*DRAWN, *DERIVED)]
    return Patients(
        ids=[f"P{number + 1:03d}" for number in range(num_patients)],
        is_real=[number % REAL_EVERY == 0 for number in range(num_patients)],
        features={name: values[:, column] for column, name in enumerate(names)},
    )


def _accepted(uniform: Float[np.ndarray, "P D"]) -> Float[np.ndarray, "P M"]:
    """Return the patients among these points whose every range and relation holds.

    Drawn features come first, then derived ones.
    """
    gaussian = norm.ppf(np.clip(uniform, 1e-9, 1 - 1e-9))
    correlated = norm.cdf(gaussian[:, :-1] @ np.linalg.cholesky(_correlation()).T)
    drawn = np.column_stack(
        [_quantile(marginal, correlated[:, column]) for column, marginal in enumerate(DRAWN)]
    )
    ejection_pct = drawn[:, _LVEF] + _LVEF_READING_SD_PCT * gaussian[:, -1]
    esv = drawn[:, _EDV] * (1 - ejection_pct / 100)
    bz_stress = drawn[:, _HEALTHY] * drawn[:, _CONCENTRATION]
    values = np.column_stack([drawn, esv, bz_stress])
    marginals = (*DRAWN, *DERIVED)
    inside = (values >= [m.low for m in marginals]) & (values <= [m.high for m in marginals])
    consistent = np.abs(drawn[:, _LVEF] - ejection_pct) <= LVEF_TOLERANCE_PCT
    return values[inside.all(axis=1) & consistent]


def _quantile(marginal: Marginal, uniform: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Return the quantiles of the beta distribution on the marginal's range.

    It has the marginal's mean and standard deviation (method of moments).
    """
    width = marginal.high - marginal.low
    mean = (marginal.mean - marginal.low) / width
    concentration = mean * (1 - mean) / (marginal.sd / width) ** 2 - 1
    return marginal.low + width * beta.ppf(
        uniform, mean * concentration, (1 - mean) * concentration
    )


def _correlation() -> Float[np.ndarray, "D D"]:
    matrix = np.eye(len(DRAWN))
    for (row, column), value in _CORRELATIONS.items():
        matrix[row, column] = matrix[column, row] = value
    return matrix
