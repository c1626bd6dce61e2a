"""The loss that learns a row's noise, and how the noise and members' spread leave the network."""

import math

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from embedcache.scaling import Scaling
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.kernels.reference import LOG_VARIANCE_LIMIT, beta_nll, log_noise_variance
from fusionnet.model.forward import to_units
from fusionnet.model.loss import MultiTaskLoss
from fusionnet.model.members import members_of
from fusionnet.model.uncertainty import noise_as_learnt, spread_as_learnt

NOISY = Task(name="ef", column="y", loss="beta_nll")
TASKS = (Task(name="opt", column="b", kind="binary"), NOISY, Task(name="aux", column="z"))
SCALING = Scaling(
    *[()] * 7,
    target_mean=(0.0, 7.0, 10.0),
    target_std=(1.0, 4.0, 5.0),
    positive_rate={"opt": 0.24},
    target_transforms=("standardize",) * 3,
)
NUM_OUTPUTS = 4


def rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outputs = torch.randn(num_rows, NUM_OUTPUTS)
    targets = torch.stack(
        [
            (torch.rand(num_rows) < 0.3).float(),
            7 + 4 * torch.randn(num_rows),
            10 + 5 * torch.randn(num_rows),
        ],
        dim=1,
    )
    targets[torch.rand(num_rows, 3) < 0.3] = math.nan
    return outputs, targets, torch.where(torch.rand(num_rows) < 0.2, 5.0, 1.0)


def denominators(targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight.unsqueeze(1) * ~targets.isnan()).sum(0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_it_is_the_likelihood_times_the_variance_to_the_beta(beta: float) -> None:
    outputs = torch.randn(60, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(60, dtype=torch.float64)
    variance = (10 * torch.tanh(outputs[:, 1] / 10)).exp()
    wanted = -Normal(outputs[:, 0], variance.sqrt()).log_prob(target) - math.log(2 * math.pi) / 2
    wanted = wanted * variance.detach() ** beta
    found = beta_nll(outputs, target, beta)
    torch.testing.assert_close(found, wanted)
    (slopes,) = torch.autograd.grad(found.sum(), outputs, retain_graph=True)
    torch.testing.assert_close(slopes, torch.autograd.grad(wanted.sum(), outputs)[0])
    if beta == 1:  # the number is learnt as by half of the mean square (Seitzer et al. 2022)
        torch.testing.assert_close(slopes[:, 0], (outputs[:, 0] - target).detach())


def test_a_variance_has_limits_and_a_slope_within_them() -> None:
    output = torch.tensor([-1e4, -12.0, 0.0, 12.0, 1e4], requires_grad=True)
    found = log_noise_variance(output)
    assert found.abs().max() <= LOG_VARIANCE_LIMIT
    found.sum().backward()
    assert (output.grad[1:4] > 0).all()


@examples(cost=2)
@given(num_rows=st.integers(1, 40), cut=st.integers(0, 40), members=st.sampled_from([1, 3]))
def test_parts_of_a_step_add_up_and_its_own_log_variance_stays(
    num_rows: int, cut: int, members: int
) -> None:
    loss = MultiTaskLoss(TASKS, SCALING, LossConfig())
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.3, -2.0, 1.1]))
    outputs, targets, weight = rows(num_rows)
    outputs = torch.cat([outputs] + [outputs + torch.randn(())] * (members - 1), dim=1)
    outputs.requires_grad_()
    count = denominators(targets, weight)
    whole = loss(outputs, targets, weight, count, 1.0)
    halves = [slice(0, min(cut, num_rows)), slice(min(cut, num_rows), num_rows)]
    parts = [loss(outputs[h], targets[h], weight[h], count, 0.5) for h in halves]
    torch.testing.assert_close(sum(each.total for each in parts), whole.total, rtol=1e-4, atol=1e-5)
    slopes, moved = torch.autograd.grad(whole.total, [outputs, loss.log_variance])
    assert moved[1] == 0
    of_task = torch.stack([each[:, 1:3] for each in members_of(slopes, NUM_OUTPUTS)])
    assert of_task[:, targets[:, 1].isnan()].eq(0).all()
    plain = MultiTaskLoss(TASKS, SCALING, LossConfig(uncertainty="none"))
    (wanted,) = torch.autograd.grad(plain(outputs, targets, weight, count, 1.0).total, [outputs])
    wanted = torch.stack([each[:, 1:3] for each in members_of(wanted, NUM_OUTPUTS)])
    torch.testing.assert_close(of_task, wanted)


def test_rows_are_judged_by_the_likelihood() -> None:
    outputs, targets, weight = rows(50)
    count = denominators(targets, weight)
    trained = MultiTaskLoss(TASKS, SCALING, LossConfig())
    likely = MultiTaskLoss(
        (TASKS[0], NOISY.model_copy(update={"nll_beta": 0.0}), TASKS[2]), SCALING, LossConfig()
    )
    judged = trained.judged(outputs, targets, weight, count)
    wanted = likely(outputs, targets, weight, count, 1.0)
    torch.testing.assert_close(judged.total, wanted.total.detach())
    torch.testing.assert_close(judged.task_sums, wanted.task_sums)
    assert not torch.allclose(judged.total, trained(outputs, targets, weight, count, 1.0).total)


def test_noise_is_the_root_of_the_members_mean_variance() -> None:
    outputs = torch.randn(20, 3 * NUM_OUTPUTS)
    members = members_of(outputs, NUM_OUTPUTS)
    noise, spread = (each(outputs, TASKS, SCALING) for each in (noise_as_learnt, spread_as_learnt))
    variances = torch.stack([log_noise_variance(each[:, 2]).exp() for each in members])
    torch.testing.assert_close(noise[:, 1], 4 * variances.mean(0).sqrt())
    assert noise[:, [0, 2]].isnan().all()
    for place, column in ((1, 1), (2, 3)):
        numbers = torch.stack([each[:, column] for each in members])
        std = SCALING.target_std[place]
        torch.testing.assert_close(spread[:, place], std * numbers.std(0, correction=0))
    assert spread[:, 0].isnan().all()
    numbers = to_units(outputs, TASKS, SCALING)
    assert numbers.shape == (20, 3)
    wanted = 7 + 4 * torch.stack([each[:, 1] for each in members]).mean(0)
    torch.testing.assert_close(numbers[:, 1], wanted)
