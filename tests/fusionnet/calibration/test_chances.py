"""A temperature takes the confidence that is too much, and nothing else; sets hold the label."""

import numpy as np
import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from fusionnet.calibration.chances import all_classes, classes_inside, tempered
from fusionnet.calibration.conformal import LEVELS, score_quantiles
from fusionnet.calibration.fitting import LEAST_LABELS, best_threshold, fitted_temperature


@pytest.mark.parametrize("wanted", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_temperature_is_found_again(num_classes: int, wanted: float) -> None:
    rng = np.random.default_rng(0)
    logit = 2 * rng.normal(size=(20_000, num_classes))
    if num_classes == 1:
        label = (rng.random(20_000) < expit(logit[:, 0] / wanted)).astype(np.int64)
        given_chances = expit(logit)
    else:
        cumulative = softmax(logit / wanted, axis=1).cumsum(1)
        label = (rng.random((20_000, 1)) > cumulative).sum(1)
        given_chances = softmax(logit, axis=1)
    assert fitted_temperature(given_chances, label) == pytest.approx(wanted, rel=0.05)


def test_few_labels_or_one_class_say_nothing() -> None:
    sure = np.full((1_000, 1), 0.9)
    assert fitted_temperature(sure, np.ones(1_000, dtype=np.int64)) == 1
    few = LEAST_LABELS - 1
    assert fitted_temperature(sure[:few], np.arange(few) % 2) == 1
    # so many wrong labels ask for more than the prior lets few rows have
    wrong = np.arange(LEAST_LABELS) % 2
    some = fitted_temperature(np.where(wrong, 0.3, 0.7)[:, None], wrong)
    many = np.tile(wrong, 100)
    assert 1 < some < fitted_temperature(np.where(many, 0.3, 0.7)[:, None], many)


@examples(cost=1)
@given(
    chances=st.lists(st.floats(0, 1), min_size=2, max_size=20),
    temperature=st.floats(0.05, 20),
)
def test_ranks_and_the_likeliest_class_stay(chances: list[float], temperature: float) -> None:
    binary = torch.tensor(chances, dtype=torch.float64)[:, None]
    found = tempered(binary, temperature)
    assert found.isfinite().all()
    order = binary[:, 0].argsort(stable=True)
    assert (found[order, 0].diff() >= -1e-12).all()
    assert (tempered(binary, 1.0) == binary).all()
    half = torch.full((1, 1), 0.5, dtype=torch.float64)
    torch.testing.assert_close(tempered(half, temperature), half)
    several = torch.tensor(chances, dtype=torch.float64).softmax(0)[None]
    spread = tempered(several, temperature)
    torch.testing.assert_close(spread.sum(1), torch.ones(1, dtype=torch.float64))
    assert spread[0, several.argmax()] == spread.max()


def test_two_classes_by_one_column_are_those_by_two() -> None:
    one = torch.rand(50, 1, dtype=torch.float64)
    two = torch.cat([1 - one, one], dim=1)
    torch.testing.assert_close(all_classes(one), two)
    torch.testing.assert_close(all_classes(tempered(one, 2.5)), tempered(two, 2.5))


def test_sets_hold_as_many_labels_as_promised() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(4_000, 4)) * 2
    chances = softmax(logit, axis=1)
    label = (rng.random((4_000, 1)) > chances.cumsum(1)).sum(1)
    known, new = slice(0, 2_000), slice(2_000, None)
    score = 1 - chances[known][np.arange(2_000), label[known]]
    q = score_quantiles(score, np.arange(2_000), guaranteed=True)[LEVELS.index(90)]
    inside = classes_inside(torch.from_numpy(chances[new]), torch.full((2_000,), q).double())
    held = inside.numpy()[np.arange(2_000), label[new]]
    assert held.mean() == pytest.approx(0.9, abs=0.02)
    assert 1 < inside.sum(1).double().mean() < 4
    none = classes_inside(torch.from_numpy(chances[new]), torch.zeros(2_000).double())
    assert (none.sum(1) == 1).all()
    assert (none.double().argmax(1).numpy() == chances[new].argmax(1)).all()


@examples(cost=1)
@given(rows=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_no_threshold_has_a_greater_f1(rows: list[tuple[int, bool]]) -> None:
    chance = np.array([(place + 1) / 7 for place, _ in rows])
    positive = np.array([is_positive for _, is_positive in rows])

    def f1(threshold: float) -> float:
        chosen = chance > threshold
        return 2 * (chosen & positive).sum() / max(1, chosen.sum() + positive.sum())

    found = best_threshold(chance, positive)
    if not positive.any():
        assert found == 0.5
        return
    assert f1(found) == pytest.approx(max(f1(k / 14) for k in range(14)))
