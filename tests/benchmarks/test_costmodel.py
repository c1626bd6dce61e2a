"""The cost model recovers known constants, and its projections obey what counting says."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.costmodel import TERMS, Architecture, check, features, fit, relative_errors
from benchmarks.gpu_rates import ENCODER_PRODUCTS, GPU, NODE_S, line_of, values
from benchmarks.h100 import ASSUMED_LAUNCH_S, GRAPH_KERNEL_S, compared
from benchmarks.harness.publish import markdown, picture
from benchmarks.projection import distinct_expected, project
from benchmarks.scaling import main, projected
from benchmarks.scaling_report import report
from embedcache.errors import UserError

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


@pytest.mark.parametrize(("form", "least_gain"), [("graph", 5), ("python", 1)])
def test_projections_obey_counting(form: str, least_gain: float) -> None:
    for gpus in (1, 64):
        naive = [project(FULL, 1e8, strings, gpus, True, form) for strings in (10, 1e7)]
        # a per-row loop does not know how many strings there are
        assert naive[0].hours == naive[1].hours
        ours = [
            project(FULL, 1e8, strings, gpus, False, form).hours for strings in (10, 1e3, 1e5, 1e7)
        ]
        assert ours == sorted(ours)
        assert ours[0] < naive[0].hours / least_gain
        assert ours[-1] <= naive[0].hours * 1.000001
        # tables that both have to be read
        assert project(FULL, 1e12, 1e3, gpus, False, form).hours == pytest.approx(
            100 * project(FULL, 1e10, 1e3, gpus, False, form).hours, rel=0.01
        )
    many, few = (project(FULL, 1e10, 1e5, gpus, False, form).hours for gpus in (64, 8))
    assert many < few


def test_launches_from_python_are_paid_only_where_kernels_do_not_hide_them() -> None:
    def seconds(launch_s: float) -> float:
        return project(FULL, 1e8, 21, 1, False, "python", {"launch_s": launch_s}).step.seconds

    kernels = sum(project(FULL, 1e8, 21, 1, False, "python").step.kernels_s.values())
    hides = kernels / GPU["launches_per_step"].value
    assert seconds(0) == seconds(0.99 * hides) == pytest.approx(kernels)
    assert seconds(3 * hides) == pytest.approx(3 * kernels)


def test_a_replay_pays_every_node_and_no_launch() -> None:
    def seconds(**assumed: float) -> float:
        return project(FULL, 1e8, 21, 1, False, "graph", assumed).step.seconds

    assert seconds(launch_s=1.0) == seconds()
    nodes = GPU["nodes_per_step"].value
    assert seconds(node_s=3e-6) - seconds(node_s=1e-6) == pytest.approx(nodes * 2e-6)
    assert seconds(node_s=0) == pytest.approx(
        project(FULL, 1e8, 21, 1, False, "python", {"launch_s": 0}).step.seconds
    )


def test_ranks_wait_for_each_other_and_more_so_between_nodes() -> None:
    lone, eight, nine = (
        project(FULL, 1e8, 21, gpus, False).step.sent_s.get("gradient reduction", 0.0)
        for gpus in (1, 8, 9)
    )
    # 8 B sent per weight, and up and down three doublings
    assert eight == pytest.approx(8 * 14_000_000 / 450e9 + 2 * 3 * 20e-6)
    assert lone == 0 < eight < nine / 5


def test_a_per_row_step_is_counted_by_hand() -> None:
    weights, tokens = 12 * (4 * 600**2 + 2 * 600 * 512), 40
    # products with weights; scores and mixtures of all pairs of tokens
    forward = 2 * weights * tokens + 12 * 2 * (2 * 600 * tokens**2)
    step = project(FULL, 1e8, 10, 1, True).step_s
    rate = GPU["encoder_flop_per_s"].value
    assert step["encoder arithmetic"] == pytest.approx(8192 * 2 * forward / rate)


def test_rates_of_products_are_the_line_through_the_measured_ones() -> None:
    rate, start_s = line_of(ENCODER_PRODUCTS)
    for (rows, width_in, width_out), seconds in ENCODER_PRODUCTS.items():
        assert start_s + 2 * rows * width_in * width_out / rate == pytest.approx(seconds)
    assert GPU["product_s"].value > 0
    # two of one size count as their mean: 1 s + 2 FLOP at 4 FLOP/s
    assert line_of({(1, 1, 1): 1.5, (1, 1, 2): 1.8, (1, 2, 1): 2.2}) == pytest.approx((4, 1))


def test_what_is_compared_takes_no_seconds_from_the_measured_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {row["name"]: row for row in compared(FULL)}
    monkeypatch.setitem(GPU, "launch_s", replace(GPU["launch_s"], value=1.0))
    for name in ("GRAPH_STEP_S", "TRAINING_STEP_S", "PYTHON_STEP_S", "PYTHON_KERNEL_S"):
        monkeypatch.setattr(f"benchmarks.h100.{name}", 1.0)
    after = {row["name"]: row for row in compared(FULL)}
    assert all(after[name]["projected"] == row["projected"] for name, row in before.items())
    assert after["step from Python"]["measured"] == 1.0
    launches, nodes = values()["launches_per_step"], values()["nodes_per_step"]
    assert before["step from Python"]["projected"] == pytest.approx(launches * ASSUMED_LAUNCH_S)
    replayed = before["step replayed, benchmark"]
    kernels = before["kernel time, replayed"]["projected"]
    assert replayed["projected"] == pytest.approx(kernels + nodes * NODE_S)
    gap = before["from node to node of the graph"]["measured"]
    assert GRAPH_KERNEL_S + nodes * gap == pytest.approx(replayed["measured"])


def test_the_limit_moves_with_what_grows() -> None:
    assert project(FULL, 1e8, 1e7, 1, False).limit == "encoder arithmetic"
    assert project(FULL, 1e8, 10, 1, False).limit != "encoder arithmetic"
    assert project(FULL, 1e8, 10, 1, False, "python").limit == "launches"
    slow = {"storage_bytes_per_s": 1e4}
    assert project(FULL, 1e12, 10, 1024, False, assumed=slow).limit == "reading rows"
    # rows that fit on the GPU are not read again
    assert project(FULL, 1e8, 10, 1, False, assumed=slow).limit != "reading rows"
    wide = replace(FULL, fusion_parameters=100 * FULL.fusion_parameters)
    assert project(wide, 1e8, 10, 1, False).limit == "fusion arithmetic"


def made() -> dict[str, Any]:
    """Return a result of twelve steps that the model explains."""
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
    return {
        "encoder": "polybert",
        "precision": "bf16",
        "command": "c",
        "commit": "d",
        "date": "e",
        "hardware": {"processor": "p", "cores": 2},
        "versions": {"torch": "2"},
        "architecture": asdict(FULL),
        **check(cases),
        **projected(FULL),
    }


def test_the_text_says_what_is_measured_and_what_is_not(tmp_path: Path) -> None:
    found = made()
    text = markdown(report(found), found)
    order = (
        "## Measured here",
        "## Projected, not measured",
        "### A step in both forms",
        "## Projected and measured on one H100",
        "### 1 GPU, steps replayed",
        "### 1 GPU, steps taken from Python",
        "### 8 GPUs, steps replayed",
        "### 8 GPUs, steps taken from Python",
        "1,024 GPUs",
    )
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert all(name in text for name in (*GPU, *TERMS))
    picture(report(found), tmp_path / "scaling.json")
    assert (tmp_path / "scaling.png").stat().st_size > 5000


@pytest.mark.slow
def test_projecting_anew_keeps_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    with pytest.raises(UserError, match="holds no measured steps"):
        main(["--project", "--json", str(file)])
    old = made()
    file.write_text(json.dumps({**old, "projected": [], "assumed": {}}))
    main(["--project", "--json", str(file)])
    again = json.loads(file.read_text())
    assert again.pop("projected_by").keys() == {"command", "date"}
    assert again == json.loads(json.dumps(old))
    assert "Projected by `" in file.with_suffix(".md").read_text()
