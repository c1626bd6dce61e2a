"""Operations are counted once, by kind; what encoding adds is a difference; the text says it, with a GPU's launches where there is one."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.profile import KINDS, RANDOM, REST, added, as_markdown, by_kind, draw


def op(calls: float, seconds: float) -> dict[str, float]:
    return {"calls": calls, "seconds": seconds}


@pytest.fixture
def made() -> dict[str, Any]:
    """A step of 2.4 s beside one of 2.0 s, on a GPU that works for half of it."""
    ops = {
        "per_step": {"mm": op(100, 1.2), "copy_": op(50, 0.3), "some_new_operation": op(7, 0.1), RANDOM: op(3, 0.02)},
        "frozen": {"mm": op(60, 1.0), "copy_": op(40, 0.25), "some_new_operation": op(7, 0.1)},
    }
    modes = {
        mode: {"step_s": {"median": seconds, "p20": seconds, "p80": seconds}, "profiled_s": seconds + 0.1, "gflop": gflop, "ops": ops[mode],
               "kinds": by_kind(ops[mode]), "launches": 1234.0, "waits": 5.0, "busy_s": seconds / 2}
        for mode, seconds, gflop in (("per_step", 2.4, 700.0), ("frozen", 2.0, 600.0))
    }  # fmt: skip
    return {"batch_rows": 8192, "precision": "bf16", "encoder": "tiny", "command": "c", "commit": "d", "date": "e", "steps": 3, "rounds": 9, "modes": modes,
            "per_step_to_frozen": {"median": 1.2, "p20": 1.19, "p80": 1.21}, "hardware": {"processor": "p", "cores": 2, "gpu": "g"},
            "versions": {"torch": "2"}}  # fmt: skip


def test_every_operation_is_of_one_kind(made: dict[str, Any]) -> None:
    names = [name for ops in KINDS.values() for name in ops]
    assert len(names) == len(set(names))
    kinds = made["modes"]["per_step"]["kinds"]
    assert kinds[REST] == op(7, 0.1)
    assert kinds[RANDOM] == op(3, 0.02)
    assert sum(kind["seconds"] for kind in kinds.values()) == pytest.approx(1.62)


def test_what_encoding_adds_is_the_difference(made: dict[str, Any]) -> None:
    extra = added(made, "ops")
    assert extra["mm"] == op(40, pytest.approx(0.2))
    assert extra[RANDOM] == op(3, 0.02)
    assert added(made, "kinds")[REST] == op(0, 0)


def test_the_text_and_the_picture_say_it(made: dict[str, Any], tmp_path: Path) -> None:
    text = as_markdown(made)
    assert "1.20 x the time of frozen (1.19 to 1.21, within rounds)" in text
    assert "270 ms: 200 ms in matrix products at 500 GFLOP/s (the network's own run at 600), the rest in 13 other operations" in text
    assert "frozen: 1,234 launches and 5 waits of the host a step; the GPU works for 50% of it" in text
    assert "| matrix products | 1,200 | 1,000 | 200 | 100 | 40 |" in text
    draw(made, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
