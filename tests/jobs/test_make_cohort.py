"""The reference cohort: its exact shape, its published marginals, its known best score, and the
same rows whatever else is made.
"""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from forks import Done, Forks
from scipy.stats import qmc
from sklearn.metrics import r2_score

from fusionnet.experiment import load_experiment
from jobs.cohort.generate import (
    FORMULATION_COLUMNS,
    OUTCOME_COLUMNS,
    PATIENT_COLUMNS,
    calibrate,
    cohort_frames,
    latin_hypercube,
)
from jobs.cohort.outcomes import COVERAGES
from jobs.cohort.patients import DERIVED, DRAWN, LVEF_TOLERANCE_PCT, draw_patients
from jobs.cohort.polymers import chemistry_of, load_polymers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cohort")]  # fixtures of seconds
ROWS = 480


@pytest.fixture
def make(forks: Forks, repository: Path) -> Callable[..., Done]:
    return partial(forks.run, repository / "jobs" / "make_cohort.py")


@pytest.fixture(scope="module")
def cohort() -> pl.DataFrame:
    return pl.concat(cohort_frames(60, ROWS, 0, True))


@pytest.fixture(scope="module")
def oracle() -> pl.DataFrame:
    return pl.concat(cohort_frames(60, ROWS, 0, False))


def test_shape(cohort: pl.DataFrame, repository: Path) -> None:
    assert len(cohort) == 60 * ROWS
    assert cohort["patient_id"].n_unique() == 60
    assert cohort.filter("is_real")["patient_id"].n_unique() == 10
    assert cohort["polymer_name"].n_unique() == 24
    assert cohort["polymer_SMILES"].n_unique() == 21
    assert cohort["polymer_category"].n_unique() == 8
    assert cohort.null_count().sum_horizontal().item() == 0
    stage1 = load_experiment(repository / "configs" / "stage1.yaml")
    wanted = (
        {column.column for column in stage1.data.numeric}
        | {task.column for task in stage1.tasks}
        | {"polymer_SMILES", "polymer_category", "patient_id", "is_real"}
    )
    assert wanted <= set(cohort.columns)
    assert {column.column for column in stage1.data.numeric} == {
        *PATIENT_COLUMNS,
        *FORMULATION_COLUMNS,
    }


def test_rows_are_dealt_to_hydrogels_as_in_the_published_table() -> None:
    frame = next(cohort_frames(1, 7458, 0, True))
    counts = frame.group_by("polymer_name").len()["len"].to_list()
    assert sorted(counts) == [310] * 6 + [311] * 18
    assert 60 * len(frame) == 447_480
    coverage = frame.select(*COVERAGES).to_numpy()
    assert (coverage.sum(1) == 1).all()
    assert np.ptp(coverage.sum(0)) <= 4  # the four patterns in turn


def test_patients_have_the_published_marginals_and_keep_every_relation() -> None:
    patients = draw_patients(4096, seed=11)
    for marginal in (*DRAWN, *DERIVED):
        values = patients.features[marginal.name]
        assert values.min() >= marginal.low, marginal.name
        assert values.max() <= marginal.high, marginal.name
        assert abs(values.mean() - marginal.mean) < 0.08 * marginal.sd + 0.02 * abs(
            marginal.mean
        ), marginal.name
        assert values.std() == pytest.approx(marginal.sd, rel=0.1), marginal.name
    f = patients.features
    assert (f["baseline_EDV_mL"] > f["baseline_ESV_mL"]).all()
    ejection = 100 * (f["baseline_EDV_mL"] - f["baseline_ESV_mL"]) / f["baseline_EDV_mL"]
    assert np.abs(ejection - f["baseline_LVEF_pct"]).max() <= LVEF_TOLERANCE_PCT + 1e-9
    np.testing.assert_allclose(
        f["bz_stress_kPa"], f["healthy_stress_kPa"] * f["stress_concentration"]
    )


def test_formulations_stay_in_their_hydrogels_ranges(cohort: pl.DataFrame) -> None:
    for polymer in load_polymers():
        rows = cohort.filter(pl.col("polymer_name") == polymer.name)
        for column, (low, high) in (
            ("hydrogel_E_kPa", polymer.modulus_kPa),
            ("hydrogel_t50_days", polymer.t50_days),
            ("hydrogel_conductivity_S_m", polymer.conductivity_S_m),
        ):
            assert rows[column].min() >= low - 1e-9
            assert rows[column].max() <= high + 1e-9


def test_outcomes_have_the_published_marginals(cohort: pl.DataFrame) -> None:
    assert cohort["delta_EF_pct"].mean() == pytest.approx(7.6, rel=0.05)
    assert cohort["delta_EF_pct"].std() == pytest.approx(4.2, rel=0.05)
    assert cohort["delta_EF_pct"].min() >= 0
    assert cohort["delta_EF_pct"].max() <= 22
    assert cohort["is_optimal"].mean() == pytest.approx(0.24, abs=0.01)
    by_rule = (cohort["delta_EF_pct"] >= 3) & (cohort["delta_BZ_stress_reduction_pct"] >= 15)
    assert (by_rule == cohort["is_optimal"]).all()
    for column in ("safety", "toxicity", "integrity"):
        assert cohort[column].is_between(0, 1).all()
    assert 0.01 < (cohort["toxicity"] > 0.15).mean() < 0.3
    assert 0.01 < (cohort["integrity"] < 0.8).mean() < 0.3


def test_the_oracle_is_the_best_score_that_was_asked_for(
    cohort: pl.DataFrame, oracle: pl.DataFrame
) -> None:
    assert oracle.columns == list(OUTCOME_COLUMNS)
    assert r2_score(cohort["delta_EF_pct"], oracle["delta_EF_pct"]) == pytest.approx(0.92, abs=0.01)
    # The oracle's is_optimal is the probability of the noisy label: its mean is the rate, and rows
    # of like probability have that rate.
    probability, label = oracle["is_optimal"].to_numpy(), cohort["is_optimal"].to_numpy()
    assert probability.mean() == pytest.approx(label.mean(), abs=0.005)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (probability >= low) & (probability < low + 0.2)
        assert label[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.04)


def test_chemistry_is_a_function_of_structure_alone(cohort: pl.DataFrame) -> None:
    gelma = [
        polymer
        for polymer in load_polymers()
        if polymer.name.startswith("GelMA_") and polymer.name.endswith("pct")
    ]
    assert len(gelma) == 4
    assert len({polymer.chemistry for polymer in gelma}) == 1
    other_spelling = astuple(chemistry_of("C1(O)C(N)C([*])OC(CO)C1O[*]"))
    assert astuple(chemistry_of("[*]OC1C(CO)OC([*])C(N)C1O")) == pytest.approx(other_spelling)
    assert len({polymer.chemistry for polymer in load_polymers()}) == 21
    effect = (
        cohort.group_by("polymer_SMILES").agg(pl.col("delta_EF_pct").mean())["delta_EF_pct"].std()
    )
    assert effect > 1


def test_patients_are_the_same_however_many_are_made(cohort: pl.DataFrame) -> None:
    few = pl.concat(cohort_frames(3, ROWS, 0, True))
    assert few.equals(cohort.head(3 * ROWS))
    assert not few.equals(pl.concat(cohort_frames(3, ROWS, 1, True)))


def test_the_calibration_does_not_depend_on_the_cohort() -> None:
    assert calibrate() is calibrate()
    assert calibrate().ef_noise_pct == pytest.approx(4.2 * 0.08**0.5, rel=0.1)


@pytest.mark.dist
def test_the_command_writes_both_tables_and_says_that_they_are_synthetic(
    make: Callable[..., Done], tmp_path: Path
) -> None:
    both = ("--out", tmp_path / "c.parquet", "--noise-free", tmp_path / "o.parquet")
    done = make(*both, "--patients", 6, "--rows-per-patient", 48)
    assert "synthetic" in done.out
    assert "288 rows, 6 patients (1 labelled real)" in done.out
    written = pl.read_parquet(tmp_path / "c.parquet")
    assert written.equals(pl.concat(cohort_frames(6, 48, 0, True)))
    assert len(pl.read_parquet(tmp_path / "o.parquet")) == 288
    make("--out", tmp_path / "c.csv", "--patients", 1, "--rows-per-patient", 24)
    assert pl.read_csv(tmp_path / "c.csv").shape == (24, written.width)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", "c.parquet", "o.parquet"]


@pytest.mark.dist
@pytest.mark.parametrize(
    "arguments",
    [
        ("--out", "c.xlsx"),
        ("--out", "c.parquet", "--patients", "0"),
        ("--out", "c.parquet", "--seed", "-1"),
        (),
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: tuple[str, ...],
    make: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(*arguments, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 7, 310])
def test_the_hypercube_is_scipys_to_the_bit(count: int) -> None:
    seed = [0, 2, 5, 3]
    scipys = qmc.LatinHypercube(4, rng=np.random.default_rng(seed)).random(count)
    np.testing.assert_array_equal(latin_hypercube(4, count, seed), scipys)
