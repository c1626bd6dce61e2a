"""Frequencies, crossings, and the text of the sweeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rdkit import Chem

from benchmarks.harness.publish import markdown, picture
from benchmarks.harness.setting import PADDED, made_strings
from benchmarks.sweep_steps import crossing, draw_ids, speedups
from benchmarks.sweeps import FULL, QUICK, report


def test_uniform_and_zipf_draw_as_they_say() -> None:
    uniform, zipf = (
        np.bincount(draw_ids(40_000, 100, law).numpy(), minlength=100)
        for law in ("uniform", "zipf")
    )
    assert uniform.min() > 300
    assert uniform.max() < 500
    harmonic = (1 / np.arange(1, 101)).sum()
    assert zipf[:5] / 40_000 == pytest.approx(
        [1 / rank / harmonic for rank in range(1, 6)], rel=0.06
    )
    assert len(np.unique(draw_ids(8192, 20_000, "zipf"))) < len(
        np.unique(draw_ids(8192, 20_000, "uniform"))
    )


def test_a_crossing_is_exact_on_a_power_law() -> None:
    points = [(x, 800 / x) for x in (1, 10, 100, 1000)]
    assert crossing(points, 2.0) == pytest.approx(400)
    assert crossing(points, 0.5) is None
    assert crossing([(1, 1.5), (10, 1.2)], 2.0) is None  # it began below


def test_made_strings_are_distinct_psmiles_that_fit_the_padding() -> None:
    strings = made_strings(400)
    assert len(set(strings)) == 400
    assert max(map(len, strings)) <= PADDED - 4
    assert all(
        Chem.MolFromSmiles(string) is not None and string.count("[*]") == 2
        for string in strings[:60]
    )
    assert made_strings(50) == strings[:50]


@pytest.fixture
def made() -> dict[str, Any]:
    """A step that costs 1 s and a hundredth of a second per string, against one that costs a second
    per row.
    """

    distinct = {count: count for count in QUICK.strings}
    naive = {
        "seconds": {rows: float(rows) for rows in QUICK.naive_rows},
        "tokens": 50 * QUICK.naive_rows[-1],
    }
    turns: dict[str, list[Any]] = {
        "naive_128": [naive] * 2,
        "naive_bucketed": [naive] * 2,
        "frozen": [{"step": 1.0}] * 2,
    }
    turns |= {
        f"per_step {count}": [{"step": 1 + 0.01 * count, "tokens": 50 * count}] * 2
        for count in QUICK.strings
    }
    sweep = speedups(QUICK.rows, distinct, turns, ("naive_128", "naive_bucketed"), QUICK.naive_rows)
    sweep |= {
        "axis": "distinct strings of the table",
        "encoder": "middle",
        "commit": "c",
        "date": "d",
    }
    return {
        "command": "c",
        "commit": "d",
        "date": "e",
        "rows": QUICK.rows,
        "precision": "bf16",
        "versions": {"torch": "2"},
        "hardware": {"processor": "p", "cores": 2},
        "sweeps": {"strings": sweep, "uniform": sweep},
    }


def test_speed_up_and_bound_of_known_costs(made: dict[str, Any]) -> None:
    for point in made["sweeps"]["strings"]["points"]:
        assert point["distinct"] == point["x"]
        assert point["speedup_vs_naive_128"]["median"] == pytest.approx(
            QUICK.rows / (1 + 0.01 * point["x"])
        )
        f, r = 1 - 1 / QUICK.rows, QUICK.rows / point["x"]
        assert point["bound_vs_naive_128"] == pytest.approx(1 / (1 - f + f / r))


def test_the_text_and_the_picture_say_it(made: dict[str, Any], tmp_path: Path) -> None:
    text = markdown(report(made), made)
    assert "falls below 1.1 in no measured point" in text
    picture(report(made), tmp_path / "sweeps.json")
    assert (tmp_path / "sweeps.png").stat().st_size > 5000


def test_sweeps_without_distinct_strings_are_drawn_where_they_are_alone(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spread = {"median": 2.0, "p20": 1.5, "p80": 3.0}
    points = [{"x": x, "per_step_s": spread, "speedup_vs_naive_longest": spread} for x in (8, 64)]
    made["sweeps"] = {
        "length": {
            "points": points,
            "axis": "tokens of a string",
            "encoder": "middle",
            "commit": "c",
            "date": "d",
        }
    }
    drawn = []
    monkeypatch.setattr(
        "benchmarks.harness.pictures.save", lambda figure, path: drawn.append(figure)
    )
    picture(report(made), tmp_path / "sweeps.json")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "tokens of a string"
    # no bound was computed
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "measured, length, against naive_longest"
    ]
    plt.close(drawn[0])


def test_the_full_form_has_what_was_asked() -> None:
    assert FULL.strings == (1, 5, 21, 100, 300, 1000)
    assert (FULL.rows, FULL.encoder) == (8192, "polybert")
    assert (min(FULL.micro), max(FULL.micro), max(FULL.vocabulary), FULL.ranks) == (
        64,
        8192,
        20_000,
        (1, 2),
    )
