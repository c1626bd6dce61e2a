"""Warm-up reaches the peak, the cosine reaches its end, both in epochs unless steps are given."""

import itertools

import pytest

from fusionnet.config.train import OptimConfig
from fusionnet.train.schedule import make_schedule


def test_warm_up_reaches_the_peak_and_the_cosine_its_end() -> None:
    schedule = make_schedule(
        OptimConfig(warmup_epochs=2.0, final_lr_fraction=0.1), steps_per_epoch=39, epochs=15
    )
    factors = [schedule.factor(step) for step in range(15 * 39)]
    assert factors[0] == pytest.approx(1 / 78)
    assert factors[77] == 1.0
    assert max(factors) == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[77:]))
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert schedule.factor(77 + (585 - 78) // 2 + 1) == pytest.approx(0.55, abs=0.01)


def test_explicit_steps_win() -> None:
    schedule = make_schedule(
        OptimConfig(warmup_steps=1000, total_steps=15000), steps_per_epoch=39, epochs=15
    )
    assert (schedule.warmup_steps, schedule.total_steps) == (1000, 15000)
    # the specification's own schedule never reaches its peak
    assert schedule.factor(584) == pytest.approx(0.585)


def test_groups_keep_their_own_peaks() -> None:
    optim = OptimConfig(lr=3e-4, lr_encoder=2e-5, warmup_epochs=0)
    rates = make_schedule(optim, 10, 1).rates(0)
    assert rates["encoder"] == pytest.approx(2e-5)
    assert rates["network"] == pytest.approx(3e-4)
