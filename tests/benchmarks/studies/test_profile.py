"""An operation is counted once, in the phase that started it; what is left of a phase is Python's;
the text says it, with the launches of a GPU.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.publish import markdown, picture
from benchmarks.harness.timing import PHASES
from benchmarks.studies.operations import (
    COMPILED,
    KINDS,
    MARK,
    OUTSIDE,
    PRODUCTS,
    PYTHON,
    RANDOM,
    REST,
    by_kind,
    by_phase,
)
from benchmarks.studies.profile import IN_PLACE, report


def event(name: str, start: float, micros: float = 0.0, on_device: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start),
        self_cpu_time_total=micros,
        self_device_time_total=on_device,
    )


EVENTS = [
    event("aten::mm", 5, 3),  # before the step
    event(MARK + "rest", 10, 1),
    event("aten::add", 12, 4),
    event(MARK + "encode", 20, 1),
    event("aten::mm", 21, 60, 500),
    event("cudaLaunchKernel", 22, 2),
    event("aten::mm", 90, 5, 10),
    event(MARK + "rest", 100, 1),
    event("cudaStreamSynchronize", 101, 3),
    event(MARK + OUTSIDE, 130, 1),
    event("aten::mm", 140, 50),
]


def test_an_operation_belongs_to_the_phase_that_started_it() -> None:
    phases, asked = by_phase(EVENTS[::-1], on_gpu=False)
    assert set(phases) == set(PHASES)
    assert phases["encode"] == {
        "mm": {"calls": 2, "seconds": pytest.approx(65e-6)},
        PYTHON: {"calls": 0, "seconds": pytest.approx(15e-6)},
    }
    assert phases["rest"] == {
        "add": {"calls": 1, "seconds": pytest.approx(4e-6)},
        PYTHON: {"calls": 0, "seconds": pytest.approx(36e-6)},
    }
    assert asked == {"cudaLaunchKernel": {"calls": 1}, "cudaStreamSynchronize": {"calls": 1}}


def test_on_a_gpu_the_seconds_are_its_own() -> None:
    phases, _ = by_phase(EVENTS, on_gpu=True)
    assert phases["encode"] == {"mm": {"calls": 2, "seconds": pytest.approx(510e-6)}}


@pytest.fixture
def made() -> dict[str, Any]:
    """A step of 2.4 s, 0.4 of them the encoder's, on a GPU that works for half of it."""

    def op(calls: float, seconds: float) -> dict[str, float]:
        return {"calls": calls, "seconds": seconds}

    phases = {phase: {} for phase in PHASES}
    phases["encode"] = {
        "mm": op(30, 0.10),
        "copy_": op(50, 0.02),
        "some_new_operation": op(7, 0.03),
        RANDOM: op(3, 0.01),
    }
    phases["backward: encoder"] = {"mm": op(10, 0.15), "copy_": op(5, 0.09)}
    phases["fusion forward"] = {"mm": op(60, 0.80), "triton_poi_fused_add_0": op(2, 0.01)}
    spread = {
        mode: {"median": seconds, "p20": seconds, "p80": seconds}
        for mode, seconds in (("per_step", 2.4), ("frozen", 2.0))
    }
    return {
        "batch_rows": 8192,
        "precision": "bf16",
        "encoder": "tiny",
        "command": "c",
        "commit": "d",
        "date": "e",
        "steps": 3,
        "rounds": 9,
        "step_s": spread,
        "per_step_to_frozen": {"median": 1.2, "p20": 1.19, "p80": 1.21},
        "hardware": {"processor": "p", "cores": 2, "gpu": "g"},
        "versions": {"torch": "2"},
        "profiled_s": 2.5,
        "encoder_gflop": 125.0,
        "other_gflop": 600.0,
        "phases": phases,
        "launches": 1234.0,
        "waits": 5.0,
    }


def test_every_operation_is_of_one_kind(made: dict[str, Any]) -> None:
    names = [name for ops in KINDS.values() for name in ops]
    assert len(names) == len(set(names))
    kinds = by_kind(made["phases"])
    assert kinds[REST] == {"calls": 7, "seconds": 0.03}
    assert kinds[PRODUCTS] == {"calls": 100, "seconds": pytest.approx(1.05)}
    assert kinds[COMPILED] == {"calls": 2, "seconds": 0.01}
    assert by_kind(made["phases"], ["encode"])[PRODUCTS] == {"calls": 30, "seconds": 0.1}


def test_the_text_and_the_picture_say_it(made: dict[str, Any], tmp_path: Path) -> None:
    text = markdown(report(made), made)
    assert "1.20 x the time of frozen (1.19 to 1.21, within rounds)" in text
    assert (
        "two passes take 400 ms: 250 ms are matrix products, at 500 GFLOP/s (all others run at"
        " 750), the rest are 65 other operations." in text
    )
    assert (
        "A step asks for 1,234 launches and 5 waits of the host; the GPU works in 50% of it."
        in text
    )
    assert "| matrix products | 0 | 100 | 800 | 0 | 0 | 150 | 0 | 0 | 1,050 | 100 |" in text
    assert "| `copy_` | 110 | 55 |" in text
    assert "norms, softmax" not in text, "there were none"
    picture(report(made), tmp_path / "profile.json")
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_products_in_place_are_counted_as_others_are() -> None:
    x, a, b = torch.zeros(3, 5), torch.zeros(3, 4), torch.zeros(4, 5)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        x.addmm_(a, b, alpha=0.5)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5
