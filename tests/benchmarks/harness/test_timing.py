"""Interleaving, spreads, extension along a line, and the accounting of phases."""

import time
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks.harness.timing import PHASES, Phases, extended, interleaved, paired_ratio, spread


def test_all_modes_take_part_in_every_round_and_none_follows_itself() -> None:
    order: list[str] = []
    turns = {name: (lambda name=name: order.append(name) or len(order)) for name in "abcd"}
    found = interleaved(turns, 40)
    rounds = ["".join(order[start : start + 4]) for start in range(0, 160, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert all(before != after for before, after in pairwise(order))
    assert found == {
        name: [place + 1 for place, ran in enumerate(order) if ran == name] for name in "abcd"
    }
    followed = Counter(pairwise(order))
    assert len(followed) == 12  # each follows each other one
    assert max(followed.values()) < 3 * min(followed.values())
    again: list[str] = []
    interleaved({name: (lambda name=name: again.append(name)) for name in "abcd"}, 40)
    assert again == order  # ranks that take turns together must agree


@pytest.mark.parametrize(("names", "expected"), [("", ""), ("a", "aaa"), ("ab", "ababab")])
def test_few_modes_alternate(names: str, expected: str) -> None:
    order: list[str] = []
    interleaved({name: (lambda name=name: order.append(name)) for name in names}, 3)
    assert "".join(order) == expected


def test_a_slow_drift_of_the_machine_leaves_paired_ratios_alone() -> None:
    drift = [1.0, 2.0, 4.0, 8.0]  # of the whole machine, round by round
    slow, fast = [6 * factor for factor in drift], [2 * factor for factor in drift]
    assert paired_ratio(slow, fast) == {"median": 3, "p20": 3, "p80": 3}
    assert spread(slow)["p80"] > 2 * spread(slow)["p20"]


def test_extension_is_exact_on_a_line_and_tells_how_far_off_it_the_middle_is() -> None:
    line = {rows: 0.5 + 0.02 * rows for rows in (10, 20, 30)}
    seconds, error = extended(line, 8192)
    assert seconds == pytest.approx(0.5 + 0.02 * 8192)
    assert error == pytest.approx(0, abs=1e-12)
    bent = {**line, 20: line[20] * 1.25}
    assert extended(bent, 8192) == (pytest.approx(seconds), pytest.approx(0.2))


def test_an_inner_phase_is_not_also_the_outer_ones() -> None:
    phases = Phases()
    phases.reset()
    started = time.perf_counter()
    with phases.inside("backward: fusion"):
        time.sleep(0.02)
        with phases.inside("encode"):
            time.sleep(0.06)
    found, passed = phases.finish(), time.perf_counter() - started
    assert found["encode"] >= 0.06
    assert 0.02 <= found["backward: fusion"] <= passed - 0.06
    assert sum(found.values()) == pytest.approx(passed, abs=0.01)
    assert set(found) == set(PHASES)


def test_a_gradient_at_the_encoders_output_turns_backward_into_the_encoders() -> None:
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.05)
            return gradient

    class Module(nn.Module):
        def forward(self, x):
            return Slow.apply(x)

    phases, encoder, network = Phases(), Module(), Module()
    phases.watch(encoder, "encode", backward="backward: encoder")
    phases.watch(network, "fusion forward")
    phases.reset()
    loss = network(encoder(torch.ones(1, requires_grad=True))).sum()
    phases.wrap("backward: fusion", loss.backward)()
    found = phases.finish()
    assert found["backward: fusion"] >= 0.05
    assert 0.05 <= found["backward: encoder"] < 0.1 + found["rest"]


def test_a_compiled_module_is_watched_from_outside() -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    network, x = Double(), torch.ones(1, 3)
    network.compile(backend="eager", fullgraph=True)
    phases = Phases()
    phases.watch(network, "fusion forward")
    phases.reset()
    assert torch.equal(network(x), 2 * x)
    found = phases.finish()
    assert found["fusion forward"] > 0
    assert found["encode"] == 0
