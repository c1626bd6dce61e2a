"""Probabilities are those at which the expected loss is least, found here by search."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from embedcache.scaling import Scaling
from fusionnet.config.tasks import Task
from fusionnet.kernels.reference import focal
from fusionnet.model.forward import to_units
from fusionnet.model.probability import meaning_of, probability

RATE = 0.2
SCALING = Scaling(*[()] * 7, (0.0,), (1.0,), {"b": RATE})


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_the_score_of_least_expected_loss_gives_the_probability_back(
    gamma: float, weight: float
) -> None:
    for eta in (0.003, 0.05, 0.2, 0.5, 0.8, 0.99):

        def risk(z: float, eta: float = eta) -> float:
            logit = torch.tensor([z, z], dtype=torch.float64)
            positive, negative = focal(logit, torch.tensor([1.0, 0.0]), gamma, weight).tolist()
            return eta * positive + (1 - eta) * negative

        best = minimize_scalar(risk, bounds=(-15, 15), method="bounded", options={"xatol": 1e-9}).x
        found = probability(torch.tensor(best, dtype=torch.float64), gamma, weight)
        assert found.item() == pytest.approx(eta, rel=1e-5)


def test_plain_cross_entropy_is_the_sigmoid_to_the_bit() -> None:
    z = torch.linspace(-120, 120, 999)
    assert torch.equal(probability(z, 0.0, 1.0), z.sigmoid())


@pytest.mark.parametrize("gamma", [0.0, 0.01, 2.0, 100.0])
def test_ranks_stay_and_both_ends_are_finite_with_their_slopes(gamma: float) -> None:
    z = torch.linspace(-120, 120, 4001, dtype=torch.float64, requires_grad=True)
    found = probability(z, gamma, 3.0)
    inside = (found > 1e-12) & (found < 1 - 1e-12)
    assert (found.diff()[inside[1:]] > 0).all()
    assert (found.diff() >= 0).all()
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert slope.isfinite().all()
    narrow = probability(z.detach().float(), gamma, 3.0)
    torch.testing.assert_close(narrow.double(), found.detach(), rtol=0, atol=3e-6)
    middle = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: probability(x, gamma, 3.0), middle)


@pytest.mark.parametrize(
    "task",
    [{"loss": "focal"}, {"loss": "bce"}, {"loss": "bce", "pos_weight": 1.0}, {"gamma": 0.0}],
)
def test_a_score_of_a_half_is_the_rate_where_weights_balance_the_classes(task: dict) -> None:
    binary = Task(name="b", column="c", kind="binary", **task)
    outputs = torch.zeros(3, 1)
    half = 0.5 if binary.pos_weight == 1 else RATE
    assert to_units(outputs, [binary], SCALING)[:, 0].tolist() == pytest.approx([half] * 3)
    assert to_units(outputs, [binary], SCALING, "score").tolist() == [[0.5]] * 3
    assert f"the probability of a positive label; above {half} " in meaning_of(binary, SCALING)


def test_a_micro_batchs_focal_weight_leaves_a_score() -> None:
    task = Task(name="b", column="c", kind="binary", reduction="batch")
    outputs = torch.from_numpy(np.linspace(-5, 5, 7, dtype=np.float32)).unsqueeze(1)
    for unit in ("probability", "score"):
        assert torch.equal(to_units(outputs, [task], SCALING, unit), outputs.sigmoid())
    assert "a score between 0 and 1, not a probability" in meaning_of(task, SCALING)
