"""The outcome model: what a patch of a hydrogel on a patient's scar does, stated in full.

It is a model, not data: it gives a table of the right shape with effects of plausible form and a
known best score. All patient effects go through the observed features; there is no hidden patient
effect, so patients that were never seen are predictable.

Mechanics (Laplace: wall stress = pressure x radius / (2 x thickness)). A patch of modulus E [kPa],
thickness h [mm] and coverage c shares the load of a wall of thickness w [mm] and modulus E_m: k = c
h E' / (w E_m), with E' = E / (1 + E / 60 kPa) since a stiff patch detaches before it carries more.
It takes the share k / (1 + k), and passes on to the muscle what its stiffness allows: match = 0.1 +
0.9 exp(-(ln E/10)^2 / (2 x 0.8^2)), softer ones stretch without effect, stiffer ones hinder
filling. The relief, share x match, is greatest at 13 to 18 kPa, the myocardium's own stiffness,
where its cells work best (Engler et al. 2008, J Cell Sci 121:3794).

Residence. A patch must outlast the weeks in which the scar matures: residence = 1 / (1 + (28 d /
t50)^1.5) (half after four weeks).

Conduction. Conductivity helps the border zone up to a plateau: conduction = s / (s + 0.15 S/m)
(half of the effect near myocardium's 0.15-0.2 S/m).

Chemistry. Bioactivity, adhesion and irritation of the repeat unit (`polymers.chemistry_of`);
adhesion multiplies mechanics, bioactivity needs residence.

Patient. Viability falls with scar fraction and transmurality; a more dilated, more loaded heart has
more to gain from relief.

The observed outcomes are these noise-free ones plus independent noise, Laplace for the ejection
fraction (most readings are close, some are far off) and Gaussian for the rest. Scales are
calibrated once, on a fixed reference population that is not in any cohort, to the published
marginals.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import laplace, norm

Columns = dict[str, Float[np.ndarray, " N"]]
# share of the loaded zone
COVERAGES = {
    "coverage_scar_only": 0.4,
    "coverage_scar_bz25": 0.6,
    "coverage_scar_bz50": 0.8,
    "coverage_scar_bz100": 1.0,
}
MYOCARDIUM_KPA = 15.0
# the share of load grows with stiffness, so that relief peaks above MATCH_KPA
MATCH_KPA, MATCH_WIDTH, MATCH_FLOOR = 10.0, 0.8, 0.1
OPTIMAL_EF_PCT, OPTIMAL_STRESS_PCT = 3.0, 15.0  # the specification's definition of is_optimal
EF_RANGE_PCT = (0.0, 22.0)
STRESS_RANGE_PCT = (0.0, 80.0)
STRAIN_RANGE_PCT = (0.0, 60.0)


@dataclass(frozen=True)
class Latent:
    """Effects before calibration, one number per row."""

    ef: Float[np.ndarray, " N"]
    stress: Float[np.ndarray, " N"]
    strain: Float[np.ndarray, " N"]
    toxicity: Float[np.ndarray, " N"]
    integrity: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Calibration:
    """What turns latent effects into outcomes in percent: offset + scale x latent, and noise.

    The noise is given by its standard deviation.
    """

    ef_offset: float
    ef_scale: float
    ef_noise_pct: float
    stress_scale: float
    stress_noise_pct: float
    strain_scale: float
    strain_noise_pct: float
    fraction_noise: float = 0.02  # of safety, toxicity and integrity


@dataclass(frozen=True)
class Mechanisms:
    """What acts between a patch and a heart in N rows, without units."""

    relief: Float[np.ndarray, " N"]  # of wall stress
    residence: Float[np.ndarray, " N"]  # share of the patch left after four weeks
    conduction: Float[np.ndarray, " N"]
    viability: Float[np.ndarray, " N"]  # of the patient's tissue
    load: Float[np.ndarray, " N"]  # on the patient's wall


def mechanisms(rows: Columns) -> Mechanisms:
    """Return what acts in N rows that have the 19 features and `adhesion`."""
    modulus = rows["hydrogel_E_kPa"]
    coverage = sum(fraction * rows[name] for name, fraction in COVERAGES.items())
    match = MATCH_FLOOR + (1 - MATCH_FLOOR) * np.exp(
        -0.5 * (np.log(modulus / MATCH_KPA) / MATCH_WIDTH) ** 2
    )
    carried = (
        coverage
        * rows["patch_thickness_mm"]
        * modulus
        / (1 + modulus / 60)
        / (rows["wall_thickness_mm"] * MYOCARDIUM_KPA)
    )
    share = carried / (1 + carried)
    grip = 1 + 0.35 * rows["adhesion"]
    viability = (
        -0.5 * (rows["scar_fraction_pct"] - 18.6) / 7.3
        - 0.3 * (rows["transmurality"] - 0.58) / 0.18
    )
    load = (
        0.5 * (rows["stress_concentration"] - 2.6) / 0.5
        + 0.3 * (rows["baseline_EDV_mL"] - 198.3) / 42.5
    )
    conductivity = rows["hydrogel_conductivity_S_m"]
    return Mechanisms(
        relief=share * match * grip,
        residence=1 / (1 + (28 / rows["hydrogel_t50_days"]) ** 1.5),
        conduction=conductivity / (conductivity + 0.15),
        viability=viability,
        load=load,
    )


def latent_effects(rows: Columns) -> Latent:
    """Return the effects of N rows; they have the 19 features and the polymer's chemistry.

    The chemistry is `bioactivity`, `adhesion`, `irritation`.
    """
    acting = mechanisms(rows)
    relief, load, residence = acting.relief, acting.load, acting.residence
    conduction, viability = acting.conduction, acting.viability
    stiffness = np.log(rows["hydrogel_E_kPa"] / MYOCARDIUM_KPA)
    return Latent(
        ef=3.3 * relief * (1 + 0.15 * load)
        + 0.55 * residence
        + 0.45 * conduction * (1 + 0.2 * (rows["bz_fraction_pct"] - 9.4) / 4.1)
        + 0.45 * rows["bioactivity"] * (0.4 + 0.6 * residence)
        + 0.12 * viability
        - 0.10 * np.maximum(rows["irritation"], 0),
        stress=relief * (1 + 0.12 * load),
        strain=0.8 * relief * (0.5 + 0.5 * residence)
        + 0.12 * conduction
        + 0.05 * viability
        + 0.08 * rows["bioactivity"],
        toxicity=-2.6
        + 1.5 * rows["irritation"]
        + 0.5 * conduction
        + 0.35 * (1 - residence)
        + 0.12 * stiffness,
        integrity=1.9
        + 1.3 * (residence - 0.5)
        + 0.7 * rows["adhesion"]
        + 0.35 * stiffness
        - 0.15 * load,
    )


def noise_free(latent: Latent, calibration: Calibration) -> Columns:
    """Return the outcomes without noise.

    `is_optimal` is the probability that the observed outcomes pass both thresholds.
    """
    ef = np.clip(calibration.ef_offset + calibration.ef_scale * latent.ef, *EF_RANGE_PCT)
    stress = np.clip(calibration.stress_scale * latent.stress, *STRESS_RANGE_PCT)
    strain = np.clip(calibration.strain_scale * latent.strain, *STRAIN_RANGE_PCT)
    toxicity, integrity = _sigmoid(latent.toxicity), _sigmoid(latent.integrity)
    return {
        "delta_EF_pct": ef,
        "is_optimal": laplace.sf(OPTIMAL_EF_PCT, ef, calibration.ef_noise_pct / np.sqrt(2))
        * norm.sf(OPTIMAL_STRESS_PCT, stress, calibration.stress_noise_pct),
        "delta_BZ_stress_reduction_pct": stress,
        "strain_normalization_pct": strain,
        "safety": np.clip(1 - 0.7 * toxicity - 0.3 * (1 - integrity), 0, 1),
        "toxicity": toxicity,
        "integrity": integrity,
    }


def observed(oracle: Columns, calibration: Calibration, rng: np.random.Generator) -> Columns:
    """Return the outcomes as a table would have them: with noise, inside their ranges.

    `is_optimal` is decided by the noisy values.
    """
    num_rows = len(oracle["delta_EF_pct"])
    ef = np.clip(
        oracle["delta_EF_pct"] + rng.laplace(0, calibration.ef_noise_pct / np.sqrt(2), num_rows),
        *EF_RANGE_PCT,
    )
    stress_noise, strain_noise = calibration.stress_noise_pct, calibration.strain_noise_pct
    stress = np.clip(
        oracle["delta_BZ_stress_reduction_pct"] + rng.normal(0, stress_noise, num_rows),
        *STRESS_RANGE_PCT,
    )
    strain = np.clip(
        oracle["strain_normalization_pct"] + rng.normal(0, strain_noise, num_rows),
        *STRAIN_RANGE_PCT,
    )
    fractions = {
        name: np.clip(oracle[name] + rng.normal(0, calibration.fraction_noise, num_rows), 0, 1)
        for name in ("safety", "toxicity", "integrity")
    }
    return {
        "delta_EF_pct": ef,
        "is_optimal": (ef >= OPTIMAL_EF_PCT) & (stress >= OPTIMAL_STRESS_PCT),
        "delta_BZ_stress_reduction_pct": stress,
        "strain_normalization_pct": strain,
        **fractions,
    }


def _sigmoid(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    return 1 / (1 + np.exp(-x))
