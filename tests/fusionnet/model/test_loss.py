"""The loss: parts add up however a step is cut, missing labels count for nothing, focal and
uncertainty terms are the published ones.
"""

import itertools
import math

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.kernels.reference import batch_focal, focal
from fusionnet.model.loss import MultiTaskLoss

TASKS = (
    Task(name="ef", column="y", beta=2.0),
    Task(name="opt", column="b", kind="binary"),
    Task(name="aux", column="z", loss="mse", weight=0.3),
)
SCALING = Scaling(
    *[()] * 7,
    target_mean=(7.0, 0.0, 10.0),
    target_std=(4.0, 1.0, 5.0),
    positive_rate={"opt": 0.24},
    target_transforms=("standardize",) * 3,
)


def loss_of(form: str = "specification", tasks: tuple[Task, ...] = TASKS) -> MultiTaskLoss:
    loss = MultiTaskLoss(tasks, SCALING, LossConfig(uncertainty=form))
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.3, -0.7, 1.1]))
    return loss


def rows(num_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(num_rows, 3, generator=generator)
    targets = torch.randn(num_rows, 3, generator=generator) * 4 + 7
    targets[:, 1] = (targets[:, 1] > 9).float()
    targets[torch.rand(num_rows, 3, generator=generator) < 0.3] = torch.nan
    return outputs, targets, torch.where(torch.rand(num_rows, generator=generator) < 0.2, 5.0, 1.0)


def denominators(targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight.unsqueeze(1) * ~targets.isnan()).sum(0)


@examples(cost=2)
@given(
    num_rows=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    form=st.sampled_from(["specification", "kendall", "none"]),
)
def test_the_parts_of_a_step_add_up_however_it_is_cut(
    num_rows: int, cuts: list[int], form: str
) -> None:
    loss = loss_of(form)
    outputs, targets, weight = rows(num_rows)
    outputs.requires_grad_()
    count = denominators(targets, weight)
    whole = loss(outputs, targets, weight, count, 1.0)
    learned = [outputs] if form == "none" else [outputs, loss.log_variance]
    wanted = torch.autograd.grad(whole.total, learned)
    edges = sorted({0, num_rows, *(min(cut, num_rows) for cut in cuts)})
    edges = [0, *edges[1:]] if len(edges) > 1 else [0, num_rows]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    parts = [
        loss(outputs[piece], targets[piece], weight[piece], count, 1 / len(pieces))
        for piece in pieces
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sum(part.task_sums for part in parts), whole.task_sums, rtol=1e-5, atol=1e-5
    )
    found = torch.autograd.grad(sum(part.total for part in parts), learned)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_specification_form_by_hand() -> None:
    loss = loss_of()
    outputs, targets, weight = rows(50)
    seen = [~targets[:, task].isnan() for task in range(3)]
    raw = outputs * torch.tensor(SCALING.target_std) + torch.tensor(SCALING.target_mean)
    # raw units are std times the standardised loss
    smooth = (
        F.smooth_l1_loss(raw[seen[0], 0], targets[seen[0], 0], beta=2.0, reduction="none") / 4.0
    )
    mse = (raw[seen[2], 2] - targets[seen[2], 2]) ** 2 / 25.0
    bce = F.binary_cross_entropy_with_logits(
        outputs[seen[1], 1], targets[seen[1], 1], reduction="none"
    )
    focal_rows = (
        (1 - torch.exp(-bce)) ** 2 * bce * torch.where(targets[seen[1], 1] > 0, 0.76 / 0.24, 1.0)
    )
    means = [
        (weight[mask] * value).sum() / weight[mask].sum()
        for mask, value in zip(seen, (smooth, focal_rows, mse), strict=True)
    ]
    s = (0.3, -0.7, 1.1)
    wanted = sum(
        w * (math.exp(-v) * mean + v) for w, v, mean in zip((1.0, 1.0, 0.3), s, means, strict=True)
    )
    torch.testing.assert_close(
        loss(outputs, targets, weight, denominators(targets, weight), 1.0).total,
        wanted,
        rtol=1e-5,
        atol=1e-6,
    )


def test_standardised_units_are_raw_units_with_shifted_log_variances() -> None:
    # exp(-s) (c L) + s with s = s' + log c is exp(-s') L + s' + log c: the gradient with respect to
    # outputs and s is the same.
    outputs, targets, weight = rows(40)
    outputs.requires_grad_()
    raw_scaling = Scaling(*[()] * 7, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), {"opt": 0.24})
    ours, raw = loss_of(), MultiTaskLoss(TASKS, raw_scaling, LossConfig())
    with torch.no_grad():
        raw.log_variance.copy_(
            ours.log_variance + torch.tensor([math.log(4.0), 0.0, math.log(25.0)])
        )
    count = denominators(targets, weight)
    in_raw_units = outputs * torch.tensor(SCALING.target_std) + torch.tensor(SCALING.target_mean)
    mine = torch.autograd.grad(
        ours(outputs, targets, weight, count, 1.0).total, [outputs, ours.log_variance]
    )
    other = torch.autograd.grad(
        raw(in_raw_units, targets, weight, count, 1.0).total, [outputs, raw.log_variance]
    )
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_unobserved_targets_count_for_nothing() -> None:
    loss = loss_of()
    outputs, targets, weight = rows(30)
    outputs.requires_grad_()
    gradient = torch.autograd.grad(
        loss(outputs, targets, weight, denominators(targets, weight), 1.0).total, outputs
    )[0]
    assert (gradient[targets.isnan()] == 0).all()
    assert (gradient[~targets.isnan()] != 0).all()


def test_a_task_without_labels_in_the_step_does_not_move_its_log_variance() -> None:
    loss = loss_of()
    outputs, targets, weight = rows(30)
    targets[:, 2] = torch.nan
    total = loss(outputs, targets, weight, denominators(targets, weight), 1.0).total
    (moved,) = torch.autograd.grad(total, loss.log_variance)
    assert torch.isfinite(total)
    assert moved[2] == 0
    assert (moved[:2] != 0).all()


def test_log_variances_are_clamped() -> None:
    loss = loss_of()
    with torch.no_grad():
        loss.log_variance.fill_(50.0)
    outputs, targets, weight = rows(10)
    total = loss(outputs, targets, weight, denominators(targets, weight), 1.0).total
    assert total < 2.3 * (10 + 1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_lin_2017_and_finite_at_both_ends(gamma: float) -> None:
    logit = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    for target in (torch.zeros(33, dtype=torch.float64), torch.ones(33, dtype=torch.float64)):
        p = torch.sigmoid(logit)
        p_t = torch.where(target > 0, p, 1 - p)
        wanted = -torch.where(target > 0, 3.0, 1.0) * (1 - p_t) ** gamma * p_t.log()
        torch.testing.assert_close(focal(logit, target, gamma, 3.0), wanted)
        assert torch.autograd.gradcheck(lambda x, t=target: focal(x, t, gamma, 3.0), logit)
    extreme = torch.tensor([-200.0, 200.0], requires_grad=True)
    value = focal(extreme, torch.tensor([1.0, 1.0]), gamma, 1.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert extreme.grad.isfinite().all()
    assert value[0].item() == pytest.approx(200.0)


def test_batch_focal_is_the_specifications() -> None:
    logit, target = torch.randn(40), (torch.rand(40) > 0.7).float()
    bce = F.binary_cross_entropy_with_logits(logit, target, pos_weight=torch.tensor(3.17))
    wanted = (1 - torch.exp(-bce)) ** 2 * bce
    torch.testing.assert_close(
        batch_focal(logit, target, torch.ones(40), 2.0, 3.17) / 40, wanted, rtol=1e-5, atol=1e-6
    )


def test_low_precision_outputs_are_summed_in_fp32() -> None:
    loss = loss_of()
    outputs, targets, weight = rows(1023)
    count = denominators(targets, weight)
    rounded = outputs.bfloat16()
    torch.testing.assert_close(
        loss(rounded, targets, weight, count, 1.0).total,
        loss(rounded.float(), targets, weight, count, 1.0).total,
    )
