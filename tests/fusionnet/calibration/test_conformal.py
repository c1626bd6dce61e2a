"""Quantiles of scores: units weigh alike, and what is promised of new units is kept."""

import math

import numpy as np
import pytest
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from fusionnet.calibration.conformal import (
    LEVELS,
    covered_share,
    floor_of,
    left_out_coverage,
    score_quantiles,
    unit_weights,
)


@examples(cost=2)
@given(
    scores=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    num_units=st.integers(1, 6),
    guaranteed=st.booleans(),
)
def test_a_quantile_is_the_least_score_that_enough_weight_is_within(
    scores: list[int], num_units: int, guaranteed: bool
) -> None:
    unit = np.arange(len(scores)) % num_units
    score = np.array(scores, dtype=np.float64)
    found = score_quantiles(score, unit, guaranteed)
    assert list(found) == sorted(found)
    weight = unit_weights(unit)
    own_units = len(set(unit.tolist()))
    assert weight.sum() == pytest.approx(1)
    for level, q in zip(LEVELS, found, strict=True):
        wanted = level / 100 * ((own_units + 1) / own_units if guaranteed else 1)
        if math.isinf(q):
            assert wanted > 1
            continue
        assert weight[score <= q].sum() >= wanted - 1e-6
        assert weight[score < q].sum() < wanted


def test_units_count_alike_however_many_rows_they_have() -> None:
    score, unit = np.array([1.0, 2, 3, 10, 11, 12]), np.array([0, 0, 0, 1, 1, 1])
    many = np.repeat(score, [1, 1, 1, 50, 50, 50]), np.repeat(unit, [1, 1, 1, 50, 50, 50])
    assert score_quantiles(*many, False) == score_quantiles(score, unit, False)
    assert covered_share(score < 2.5, unit) == {0: pytest.approx(2 / 3), 1: 0}


def test_one_row_each_is_split_conformal_prediction() -> None:
    score = np.random.default_rng(0).exponential(size=99)
    found = score_quantiles(score, np.arange(99), guaranteed=True)
    # the ceil((n + 1) p)-th least of n (Lei et al. 2018)
    for level, q in zip(LEVELS, found, strict=True):
        assert q == np.sort(score)[math.ceil(100 * level / 100) - 1]


@pytest.mark.parametrize("guaranteed", [False, True])
@pytest.mark.parametrize("num_units", [5, 12])
def test_new_units_are_covered_as_promised(num_units: int, guaranteed: bool) -> None:
    # units differ tenfold in how far off they are: rows of one say little of the next
    rng = np.random.default_rng(num_units)
    level, covered = 80, []
    for _ in range(1_500):
        size = np.exp(rng.normal(size=num_units + 1))
        rows = rng.integers(2, 60, num_units)
        unit = np.repeat(np.arange(num_units), rows)
        score = size[unit] * np.abs(rng.normal(size=len(unit)))
        q = score_quantiles(score, unit, guaranteed)[LEVELS.index(level)]
        covered.append((size[-1] * np.abs(rng.normal(size=20)) <= q).mean())
    floor = floor_of(level, num_units, guaranteed)
    assert 100 * np.mean(covered) > floor - 1  # three standard errors
    if not guaranteed:
        assert 100 * np.mean(covered) < level  # which is why there is the other


def test_few_units_cannot_say_what_one_in_ten_does() -> None:
    score, unit = np.random.default_rng(0).random(80), np.arange(80) % 8
    found = score_quantiles(score, unit, guaranteed=True)
    assert math.isfinite(found[LEVELS.index(88)])  # 8 / 9 is 88.9 %
    assert math.isinf(found[LEVELS.index(89)])
    assert math.isfinite(score_quantiles(score, unit, guaranteed=False)[-1])
    assert floor_of(90, 8, guaranteed=False) == pytest.approx(80)


@examples(cost=2)
@given(
    scores=st.lists(st.integers(0, 9), min_size=2, max_size=40),
    num_units=st.integers(2, 6),
    level=st.sampled_from([50, 80, 90, 99]),
    guaranteed=st.booleans(),
)
def test_what_is_left_out_is_covered_by_the_others_quantile(
    scores: list[int], num_units: int, level: int, guaranteed: bool
) -> None:
    score, unit = np.array(scores, dtype=np.float64), np.arange(len(scores)) % num_units
    found = left_out_coverage(score, unit, level, guaranteed)
    shares = []
    for own in np.unique(unit):
        others = unit != own
        q = score_quantiles(score[others], unit[others], guaranteed)[LEVELS.index(level)]
        shares.append((score[~others] <= q).mean())
    assert found is not None
    assert found.mean == pytest.approx(np.mean(shares))
    assert found.least == pytest.approx(min(shares))


def test_units_that_are_unlike_each_other_expect_little_of_a_new_one() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(20), 50)
    alike = np.abs(rng.normal(size=1000))
    shifted = np.abs(rng.normal(size=1000) + 3 * rng.normal(size=20)[unit])
    same = left_out_coverage(alike, unit, 90, guaranteed=False)
    other = left_out_coverage(shifted, unit, 90, guaranteed=False)
    assert same is not None
    assert other is not None
    assert 0.88 < same.mean < 0.92
    assert same.least > 0.7
    assert other.least < 0.5
    assert left_out_coverage(alike, np.zeros(1000, dtype=np.int64), 90, guaranteed=False) is None


def test_of_very_many_units_some_are_left_out() -> None:
    score = np.random.default_rng(0).exponential(size=5000)
    found = left_out_coverage(score, np.arange(5000), 90, guaranteed=False)
    assert found is not None
    assert 0.8 < found.mean < 0.98  # of 200 units of a row each
