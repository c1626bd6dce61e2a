"""Rows of the cohort, patient by patient, with memory that does not grow with their number.

Patient i of a seed has the same rows however many patients are made: every random draw comes from a
generator named by (seed, patient, polymer).
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import polars as pl

from jobs.cohort.outcomes import (
    COVERAGES,
    Calibration,
    Columns,
    Latent,
    latent_effects,
    noise_free,
    observed,
)
from jobs.cohort.patients import Patients, draw_patients
from jobs.cohort.polymers import Polymer, load_polymers

PATIENT_COLUMNS = (
    "baseline_LVEF_pct",
    "baseline_GLS_pct",
    "baseline_EDV_mL",
    "baseline_ESV_mL",
    "scar_fraction_pct",
    "bz_fraction_pct",
    "bz_stress_kPa",
    "healthy_stress_kPa",
    "stress_concentration",
    "transmurality",
    "wall_thickness_mm",
)
FORMULATION_COLUMNS = (
    "hydrogel_E_kPa",
    "hydrogel_t50_days",
    "hydrogel_conductivity_S_m",
    "patch_thickness_mm",
    *COVERAGES,
)
OUTCOME_COLUMNS = (
    "delta_EF_pct",
    "is_optimal",
    "delta_BZ_stress_reduction_pct",
    "strain_normalization_pct",
    "safety",
    "toxicity",
    "integrity",
)
PATCH_THICKNESS_MM = (1.0, 5.0)
# of the variance of each outcome in percent, so that the noise-free outcome has R2 near 0.92
NOISE_SHARE = 0.08
REFERENCE_SEED = 20_240_229  # the reference population's; no cohort uses it
REFERENCE_PATIENTS, REFERENCE_ROWS = 512, 192
EF_MEAN_PCT, EF_SD_PCT, STRAIN_SD_PCT, OPTIMAL_RATE = 7.6, 4.2, 6.0, 0.24


def cohort_frames(
    num_patients: int, rows_per_patient: int, seed: int, with_noise: bool
) -> Iterator[pl.DataFrame]:
    """Yield one frame per patient with the table's columns.

    With `with_noise=False` it has the noise-free outcomes of the same rows alone.
    """
    patients, calibration = draw_patients(num_patients, seed), calibrate()
    for number in range(num_patients):
        labels, features = patient_rows(patients, number, rows_per_patient, seed)
        oracle = noise_free(latent_effects(features), calibration)
        if not with_noise:
            yield pl.DataFrame({name: oracle[name] for name in OUTCOME_COLUMNS})
            continue
        outcomes = observed(oracle, calibration, np.random.default_rng([seed, 3, number]))
        numbers = {name: features[name] for name in (*PATIENT_COLUMNS, *FORMULATION_COLUMNS)}
        yield labels.with_columns(
            **{
                name: pl.Series(values)
                for name, values in {
                    **numbers,
                    **{name: outcomes[name] for name in OUTCOME_COLUMNS},
                }.items()
            }
        )


def patient_rows(
    patients: Patients, number: int, num_rows: int, seed: int
) -> tuple[pl.DataFrame, Columns]:
    """Return one patient's label columns, and its features with each row's polymer chemistry."""
    polymers = load_polymers()
    counts = [len(part) for part in np.array_split(np.arange(num_rows), len(polymers))]
    blocks = [
        formulations(polymer, count, [seed, 2, number, index], number + index)
        for index, (polymer, count) in enumerate(zip(polymers, counts, strict=True))
    ]
    features = {
        name: np.concatenate([block[name] for block in blocks]) for name in FORMULATION_COLUMNS
    }
    features |= {
        name: np.full(num_rows, patients.features[name][number]) for name in PATIENT_COLUMNS
    }
    for effect in ("bioactivity", "adhesion", "irritation"):
        features[effect] = np.repeat(
            [getattr(polymer.chemistry, effect) for polymer in polymers], counts
        )
    labels = pl.DataFrame(
        {
            "patient_id": [patients.ids[number]] * num_rows,
            "is_real": [patients.is_real[number]] * num_rows,
        }
    ).with_columns(
        polymer_name=pl.Series(np.repeat([polymer.name for polymer in polymers], counts)),
        polymer_SMILES=pl.Series(np.repeat([polymer.psmiles for polymer in polymers], counts)),
        polymer_category=pl.Series(np.repeat([polymer.category for polymer in polymers], counts)),
    )
    return labels, features


def formulations(polymer: Polymer, count: int, seed: list[int], first_coverage: int) -> Columns:
    """Return `count` formulations of a hydrogel.

    They are a Latin hypercube over modulus, half-life (both in logarithms), conductivity and
    thickness.

    The coverages come in turn, from `first_coverage` on (modulo their number), so that tables of
    few rows have all of them too.
    """
    unit = latin_hypercube(4, count, seed)
    turns = (first_coverage + np.arange(count)) % len(COVERAGES)
    return {
        "hydrogel_E_kPa": _log_between(unit[:, 0], *polymer.modulus_kPa),
        "hydrogel_t50_days": _log_between(unit[:, 1], *polymer.t50_days),
        "hydrogel_conductivity_S_m": _between(unit[:, 2], *polymer.conductivity_S_m),
        "patch_thickness_mm": _between(unit[:, 3], *PATCH_THICKNESS_MM),
        **{name: (turns == index).astype(np.float64) for index, name in enumerate(COVERAGES)},
    }


def latin_hypercube(num_axes: int, count: int, seed: list[int]) -> np.ndarray:
    """Return points [count, num_axes] whose every axis has one in each of `count` equal cells.

    The bits are those of scipy's `qmc.LatinHypercube`, which copies its generator at every start,
    and the calibration alone starts it ten thousand times.
    """
    generator = np.random.default_rng(seed).spawn(1)[0]
    within = generator.uniform(size=(count, num_axes))
    cells = np.tile(np.arange(1, count + 1), (num_axes, 1))
    for axis in cells:
        generator.shuffle(axis)
    return (cells.T - within) / count


@cache
def calibrate() -> Calibration:
    """Return the constants that give the reference population its published statistics.

    These are mean and spread of delta_EF_pct, and the rate of is_optimal.
    Clipping, noise and the two thresholds interact, so they are iterated to a fixed point; the
    stress scale is found by bisection.
    """
    latent = _reference_effects()
    scale = EF_SD_PCT / latent.ef.std()
    noise = EF_SD_PCT * np.sqrt(NOISE_SHARE)
    offset = EF_MEAN_PCT - scale * latent.ef.mean()
    strain_scale = STRAIN_SD_PCT / latent.strain.std()

    def of(stress_scale: float) -> Calibration:
        stress_noise = stress_scale * float(latent.stress.std()) * np.sqrt(NOISE_SHARE)
        return Calibration(
            offset,
            scale,
            noise,
            stress_scale,
            stress_noise,
            strain_scale,
            STRAIN_SD_PCT * np.sqrt(NOISE_SHARE),
        )

    for _ in range(20):
        oracle = noise_free(latent, of(1.0))
        outcome = observed(oracle, of(1.0), np.random.default_rng(REFERENCE_SEED))["delta_EF_pct"]
        scale *= EF_SD_PCT / outcome.std()
        offset += EF_MEAN_PCT - outcome.mean()
        noise *= EF_SD_PCT * np.sqrt(NOISE_SHARE) / (outcome - oracle["delta_EF_pct"]).std()
    low, high = 1.0, 400.0
    for _ in range(60):
        middle = (low + high) / 2
        rate = noise_free(latent, of(middle))["is_optimal"].mean()
        low, high = (middle, high) if rate < OPTIMAL_RATE else (low, middle)
    return of((low + high) / 2)


def _reference_effects() -> Latent:
    """Return the latent effects of the reference population, patient after patient."""
    patients = draw_patients(REFERENCE_PATIENTS, REFERENCE_SEED)
    of_patient = [
        patient_rows(patients, number, REFERENCE_ROWS, REFERENCE_SEED)[1]
        for number in range(REFERENCE_PATIENTS)
    ]
    names = of_patient[0]
    return latent_effects(
        {name: np.concatenate([rows[name] for rows in of_patient]) for name in names}
    )


def _between(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * unit


def _log_between(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.exp(_between(unit, np.log(low), np.log(high)))
