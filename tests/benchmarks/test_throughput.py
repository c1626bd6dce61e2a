"""The bound, the summary of turns, what a result says; one step of tiny size measured for real."""

import json
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from benchmarks.harness.publish import markdown, picture
from benchmarks.harness.stepper import MODES
from benchmarks.harness.timing import PHASES
from benchmarks.peers import OURS, check_losses
from benchmarks.speedup import amdahl, derive, summary
from benchmarks.studies import operations
from benchmarks.throughput import TINY, report


def made_turns(mode: str, step: float, tokens: int) -> list[dict[str, Any]]:
    phases = {**dict.fromkeys(PHASES, 0.0), "encode": step}
    if MODES[mode].is_naive:
        return [
            {
                "seconds": {
                    str(rows): factor * step * rows / TINY.batch_rows for rows in TINY.naive_rows
                },
                "phases": phases,
                "tokens": tokens * TINY.naive_rows[-1] // TINY.batch_rows,
            }
            for factor in (1, 1.5)
        ]
    return [
        {"seconds": {str(TINY.batch_rows): factor * step}, "phases": phases, "tokens": tokens}
        for factor in (1, 1.5)
    ]


@pytest.fixture
def made() -> dict[str, Any]:
    """Two rounds; in the second the whole machine is half as fast again."""
    steps = {
        "naive_128": (100.0, 64 * 128),
        "naive_longest": (50.0, 64 * 64),
        "per_microbatch": (4.0, 512),
        "per_step": (2.0, 128),
        "frozen": (1.0, 0),
    }
    found = {
        "batch_rows": TINY.batch_rows,
        "precision": "fp32",
        "encoder": "tiny",
        "command": "c",
        "commit": "d",
        "date": "e",
        "quick": True,
        "gradient_error": {"per_step": 1e-7},
        "hardware": {"processor": "p", "cores": 2, "gpu": None},
        "versions": {"torch": "2"},
    }
    found["modes"] = {
        mode: summary(made_turns(mode, *numbers), 2**30, TINY.batch_rows)
        for mode, numbers in steps.items()
    }
    derive(found)
    return found


def test_the_bound_is_amdahls(made: dict[str, Any]) -> None:
    bound = made["bound"]["naive_128"]
    assert (bound["f"], bound["r"]) == (pytest.approx(0.99), pytest.approx(64))
    # a saving of all other tokens cannot give more
    assert bound["bound"] == pytest.approx(1 / (0.01 + 0.99 / 64))
    assert bound["share_reached"] == pytest.approx(50 / bound["bound"])
    assert amdahl(1.0, 7.0) == pytest.approx(7)
    assert amdahl(0.0, 7.0) == 1


def test_ratios_are_taken_within_rounds(made: dict[str, Any]) -> None:
    assert made["speedup_spread"]["per_step_vs_naive_128"] == {
        key: pytest.approx(50) for key in ("median", "p20", "p80")
    }
    assert (
        made["modes"]["naive_128"]["spread_s"]["p80"]
        > 1.2 * made["modes"]["naive_128"]["spread_s"]["p20"]
    )


def test_the_contract_of_the_json_holds(made: dict[str, Any]) -> None:
    for mode in ("naive_128", "naive_longest", "per_microbatch", "per_step", "frozen"):
        assert {"rows_per_s", "encoder_tokens_per_step", "peak_rss_bytes"} <= made["modes"][
            mode
        ].keys()
    assert made["modes"]["naive_128"]["encoder_tokens_per_step"] == 64 * 128
    assert made["modes"]["naive_128"]["rows_per_s"] == pytest.approx(64 / 125)
    assert {"per_step_vs_naive_128", "per_step_vs_naive_longest", "per_step_vs_frozen"} <= made[
        "speedup"
    ].keys()
    json.dumps(made, allow_nan=False)


def test_the_text_and_the_picture_say_it(made: dict[str, Any], tmp_path: Path) -> None:
    text = markdown(report(made), made)
    assert "50.0 (50.0 to 50.0)" in text
    assert "Its numbers are not results" in text
    picture(report(made), tmp_path / "plot.json")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_losses_that_differ_stop_the_comparison() -> None:
    ours = [1.0, 0.9, 0.8]
    check_losses({OURS: ours, "peer": [1.0, 0.90001, 0.80001]}, 1e-3)
    with pytest.raises(AssertionError, match="do not train as ours"):
        check_losses({OURS: ours, "peer": [1.0, 1.0, 1.0]}, 1e-3)  # one that does nothing
    with pytest.raises(AssertionError, match="do not train as ours"):
        check_losses({OURS: ours, "peer": [1.0, float("nan"), 0.8]}, 1e-3)


@pytest.fixture(scope="module")
def measured(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process measured of a tiny step, in a process of its own, since it joins a process
    group.
    """
    worker = Path(__file__).with_name("tiny_steps.py")
    done = forks.run(worker, tmp_path_factory.mktemp("setting"))
    return json.loads(done.out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.xdist_group("measured")
def test_a_tiny_step_is_measured_as_it_is(measured: dict[str, Any]) -> None:
    assert all(error < 1e-5 for error in measured["gradient_error"].values())
    assert set(measured["gradient_error"]) == {
        "naive_128",
        "naive_bucketed",
        "per_microbatch",
        "per_step",
        "prefix",
    }
    turns = measured["turns"]
    assert turns["naive_128"]["tokens"] == 128 * TINY.naive_rows[-1]
    assert (
        turns["per_step"]["tokens"] == turns["prefix"]["tokens"] < turns["per_microbatch"]["tokens"]
    )
    assert turns["frozen"]["tokens"] == 0
    for mode, turn in turns.items():
        (seconds,) = list(turn["seconds"].values())[-1:]
        assert sum(turn["phases"].values()) == pytest.approx(seconds, rel=0.02), mode
        assert (
            (turn["phases"]["encode"] > 0)
            == (turn["phases"]["backward: encoder"] > 0)
            == (mode != "frozen")
        ), mode


@pytest.mark.slow
@pytest.mark.xdist_group("measured")
def test_a_tiny_step_is_profiled_whole(measured: dict[str, Any]) -> None:
    found = measured["profile"]
    phases = found["phases"]
    assert sum(op["seconds"] for ops in phases.values() for op in ops.values()) == pytest.approx(
        found["profiled_s"], rel=0.1
    )
    for phase in ("encode", "fusion forward", "backward: fusion", "backward: encoder"):
        assert operations.by_kind(phases, [phase])[operations.PRODUCTS]["calls"] > 4, phase
    assert phases["encode"][operations.RANDOM]["calls"] > 0
    assert operations.RANDOM not in phases["backward: encoder"]
    assert operations.by_kind(phases, ["update"])["update of the weights"]["calls"] > 0
    assert 0 < found["encoder_gflop"] < 1 > found["other_gflop"] > 0


@pytest.mark.slow
@pytest.mark.xdist_group("measured")
def test_the_quality_study_fits_a_model(measured: dict[str, Any]) -> None:
    ef, optimal = measured["quality"]["delta_EF_pct"], measured["quality"]["is_optimal"]
    assert 0.5 < ef["mae"] < 6, "the outcome's standard deviation is 4.2"
    assert 0 < optimal["auroc"] <= 1


@pytest.mark.slow
@pytest.mark.xdist_group("measured")
def test_another_loop_trains_as_ours_does(measured: dict[str, Any]) -> None:
    losses = measured["losses"]
    assert max(losses[OURS]) - min(losses[OURS]) > 1e-3
    check_losses(losses, 1e-3)


@pytest.mark.slow
@pytest.mark.xdist_group("measured")
def test_loading_times_steps_of_resident_rows(measured: dict[str, Any]) -> None:
    found = measured["loading"]
    assert found["order"].startswith("resident")
    assert found["num_rows"] == 5_000
    assert 0 <= found["loading_share"] < 1
    assert found["rows_per_s"] == pytest.approx(256 / found["step_s"], rel=0.5)
