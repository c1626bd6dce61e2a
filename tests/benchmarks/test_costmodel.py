"""The cost model recovers known constants, and its projections obey what counting says."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.costmodel import TERMS, Architecture, check, features, fit, relative_errors
from benchmarks.harness.publish import markdown, picture
from benchmarks.projection import GPU, distinct_expected, project, projections
from benchmarks.scaling import report

FULL = Architecture(600, 12, 512, 13_000_000, 14_000_000)
RATES = np.array([2e-11, 1e-11, 0.01, 0.02, 0.05])


def steps(num: int, seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        rows, tokens = rng.integers(64, 8192), rng.integers(0, 4000)
        pairs, passes = tokens * rng.integers(8, 90), rng.integers(0, 9)
        found.append(features(FULL, rows, tokens, pairs, passes, rng.integers(1, 9), 12))
    return found


def test_known_constants_are_recovered() -> None:
    work = np.array(steps(40))
    assert fit(work, work @ RATES) == pytest.approx(RATES, rel=1e-6)


def test_noise_on_steps_of_all_sizes_moves_the_rates_little_and_none_turns_negative() -> None:
    work = np.array(steps(200))
    seconds = work @ RATES * np.exp(0.05 * np.random.default_rng(1).normal(size=len(work)))
    rates = fit(work, seconds)
    assert (rates >= 0).all()
    assert rates[:2] == pytest.approx(RATES[:2], rel=0.1)
    assert np.median(np.abs(relative_errors(work, seconds, rates))) < 0.06


def test_a_third_is_held_out_and_judged_by_rates_that_never_saw_it() -> None:
    work = np.array(steps(30))
    cases = [
        {
            "name": str(number),
            "mode": "per_step",
            "work": list(row),
            "seconds": dict.fromkeys(("median", "p20", "p80"), float(row @ RATES)),
        }
        for number, row in enumerate(work)
    ]
    found = check(cases)
    assert sum(case["held_out"] for case in found["cases"]) == 10
    assert found["held_out_error"]["largest"] < 1e-6
    spoiled = next(case for case in cases if case["held_out"])
    spoiled["seconds"] = {**spoiled["seconds"], "median": 2 * spoiled["seconds"]["median"]}
    again = check(cases)
    assert again["rates"] == pytest.approx(found["rates"])  # it took no part in the fit
    assert again["held_out_error"]["largest"] == pytest.approx(0.5, abs=1e-6)


def test_expected_distinct_strings() -> None:
    assert distinct_expected(1, 100) == 1
    assert distinct_expected(1e7, 1) == pytest.approx(1)
    assert distinct_expected(21, 8192) == pytest.approx(21)
    drawn = [
        len(set(np.random.default_rng(seed).integers(0, 1000, 700).tolist())) for seed in range(50)
    ]
    assert distinct_expected(1000, 700) == pytest.approx(np.mean(drawn), rel=0.01)


def test_projections_obey_counting() -> None:
    for gpus in (1, 64):
        naive = [project(FULL, 1e8, strings, gpus, True) for strings in (10, 1e7)]
        # a per-row loop does not know how many strings there are
        assert naive[0].hours == naive[1].hours
        ours = [project(FULL, 1e8, strings, gpus, False).hours for strings in (10, 1e3, 1e5, 1e7)]
        assert ours == sorted(ours)
        assert ours[0] < naive[0].hours / 5
        assert ours[-1] <= naive[0].hours * 1.000001
        assert project(FULL, 1e10, 1e3, gpus, False).hours == pytest.approx(
            100 * project(FULL, 1e8, 1e3, gpus, False).hours, rel=0.01
        )
    assert project(FULL, 1e10, 1e5, 64, False).hours < project(FULL, 1e10, 1e5, 8, False).hours


def test_a_per_row_step_is_counted_by_hand() -> None:
    weights, tokens = 12 * (4 * 600**2 + 2 * 600 * 512), 40
    # products with weights; scores and mixtures of all pairs of tokens
    forward = 2 * weights * tokens + 12 * 2 * (2 * 600 * tokens**2)
    step = project(FULL, 1e8, 10, 1, True).step_s
    assert step["encoder arithmetic"] == pytest.approx(8192 * 2 * forward / (0.25 * 989e12))


def test_the_limit_moves_with_what_grows() -> None:
    assert project(FULL, 1e8, 1e7, 1, False).limit == "encoder arithmetic"
    assert project(FULL, 1e8, 10, 1, False).limit != "encoder arithmetic"
    assert (
        project(FULL, 1e12, 10, 1024, False, {"storage_bytes_per_s": 1e4}).limit == "reading rows"
    )
    wide = replace(FULL, fusion_parameters=100 * FULL.fusion_parameters)
    assert project(wide, 1e8, 10, 1, False).limit == "fusion arithmetic"


def test_the_text_says_what_is_measured_and_what_is_not(tmp_path) -> None:
    work = np.array(steps(12))
    cases = [
        {
            "name": f"step {number}",
            "mode": "m",
            "work": list(row),
            "seconds": dict.fromkeys(("median", "p20", "p80"), float(row @ RATES)),
        }
        for number, row in enumerate(work)
    ]
    found = {
        "encoder": "polybert",
        "precision": "bf16",
        "command": "c",
        "commit": "d",
        "date": "e",
        "hardware": {"processor": "p", "cores": 2},
        "versions": {"torch": "2"},
        **check(cases),
        "projected": projections(FULL),
        "assumed": {
            name: {"value": a.value, "unit": a.unit, "source": a.source} for name, a in GPU.items()
        },
    }
    text = markdown(report(found), found)
    assert (
        text.index("## Measured here")
        < text.index("## Projected, not measured")
        < text.index("1,024 GPUs")
    )
    assert all(name in text for name in (*GPU, *TERMS))
    picture(report(found), tmp_path / "scaling.json")
    assert (tmp_path / "scaling.png").stat().st_size > 5000
