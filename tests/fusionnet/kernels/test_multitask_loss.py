"""The loss kernel is at most twice as far from float64 as plain PyTorch: loss, sums, gradients of
outputs and log-variances; and repeats bitwise.
"""

import itertools
import math

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from kernel_device import DEVICE, MARKS
from torch import Tensor

import embedcache.kernels
import fusionnet.kernels as kernels
from embedcache.scaling import Scaling
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.kernels import TaskTerm, reference
from fusionnet.model.loss import MultiTaskLoss

pytestmark = MARKS
TERMS = (
    TaskTerm("smooth_l1", 7.0, 4.0, 0.5),
    TaskTerm("focal", gamma=2.0, pos_weight=3.17),
    TaskTerm("mse", 10.0, 5.0, factor=0.15, regulariser=0.3),
    TaskTerm("focal", gamma=0.5, pos_weight=2.0, factor=0.7, regulariser=0.5),
    TaskTerm("focal"),
)
S = (0.3, -0.7, 1.1, 12.0, -10.0)  # the fourth is clamped, the last lies on the limit
NUM_ROWS = (0, 1, 7, 257, 1023)


def rows(
    num_rows: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, targets with gaps, row weights, and denominators of a step of which these
    rows are a part.
    """
    generator = torch.Generator().manual_seed(num_rows)
    outputs = 2 * torch.randn(num_rows, len(TERMS), generator=generator)
    targets = torch.randn(num_rows, len(TERMS), generator=generator) * 4 + 7
    for task in (1, 3, 4):
        targets[:, task] = (targets[:, task] > 8).float()
    targets[torch.rand(num_rows, len(TERMS), generator=generator) < 0.3] = math.nan
    weight = torch.where(torch.rand(num_rows, generator=generator) < 0.2, 5.0, 1.0)
    denominators = 1.5 * (weight.unsqueeze(1) * ~targets.isnan()).sum(0) + 1
    return outputs.to(DEVICE, dtype), targets.to(DEVICE), weight.to(DEVICE), denominators.to(DEVICE)


def results(
    call,
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor,
    denominators: Tensor,
    s: Tensor,
    terms: tuple[TaskTerm, ...] = TERMS,
) -> list[Tensor]:
    """Return loss, sums, and the gradients of outputs and s; a factor on the loss stands for a loss
    scale.
    """
    outputs, s = outputs.detach().requires_grad_(), s.detach().requires_grad_()
    total, sums = call(outputs, targets, weight, denominators, s, terms, 0.25)
    return [total.detach(), sums.detach(), *torch.autograd.grad(3 * total, [outputs, s])]


def check(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor,
    denominators: Tensor,
    s: Tensor,
    terms: tuple[TaskTerm, ...] = TERMS,
) -> None:
    """Compare kernel and plain version, both against float64, over whole tensors; fp32's last place
    is granted, or one lucky plain sum would decide.
    """
    exact = results(
        reference.multitask_loss,
        outputs.double(),
        targets.double(),
        weight,
        denominators,
        s.double(),
        terms,
    )
    plain = results(reference.multitask_loss, outputs, targets, weight, denominators, s, terms)
    found = results(kernels.multitask_loss, outputs, targets, weight, denominators, s, terms)
    again = results(kernels.multitask_loss, outputs, targets, weight, denominators, s, terms)
    for ours, repeated, theirs, true in zip(found, again, plain, exact, strict=True):
        assert torch.equal(ours, repeated), "not repeatable"
        assert ours.dtype == theirs.dtype
        assert ours.shape == true.shape
        error, last_place = (
            (ours.double() - true).norm(),
            torch.finfo(torch.float32).eps * true.norm(),
        )
        assert error <= 2 * max((theirs.double() - true).norm(), last_place), (
            f"{error:.2e} of {true.norm():.2e}"
        )
        if true.norm() > 0:
            assert error < 0.1 * true.norm(), "zeros would pass"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_loss_sums_and_gradients(num_rows: int, dtype: torch.dtype) -> None:
    check(*rows(num_rows, dtype), torch.tensor(S, device=DEVICE))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.loss} {term.gamma}")
def test_each_loss_alone(term: TaskTerm) -> None:
    # Together, a large task would hide a wrong small one.
    outputs, targets, weight, denominators = rows(257)
    column = TERMS.index(term)
    one = slice(column, column + 1)
    check(
        outputs[:, one],
        targets[:, one],
        weight,
        denominators[one],
        torch.tensor([0.4], device=DEVICE),
        (term,),
    )


def test_non_contiguous_inputs() -> None:
    outputs, targets, weight, denominators = rows(57)
    wide = torch.stack([weight, -weight], dim=1)[:, 0]
    assert not wide.is_contiguous()
    check(
        outputs.T.contiguous().T,
        targets.T.contiguous().T,
        wide,
        denominators,
        torch.tensor(S, device=DEVICE),
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_both_ends_of_the_logit_are_finite(gamma: float) -> None:
    logits = torch.tensor([-200.0, -30.0, -1e-4, 0.0, 1e-4, 30.0, 200.0], device=DEVICE)
    outputs, targets = (
        logits.repeat(2).unsqueeze(1),
        torch.tensor([0.0] * 7 + [1.0] * 7, device=DEVICE).unsqueeze(1),
    )
    ones, terms = torch.ones(14, device=DEVICE), (TaskTerm("focal", gamma=gamma, pos_weight=3.0),)
    found = results(
        kernels.multitask_loss,
        outputs,
        targets,
        ones,
        ones[:1],
        torch.zeros(1, device=DEVICE),
        terms,
    )
    exact = results(
        reference.multitask_loss,
        outputs.double(),
        targets.double(),
        ones,
        ones[:1],
        torch.zeros(1, device=DEVICE),
        terms,
    )
    for ours, true in zip(found, exact, strict=True):
        # element by element, the smallest too
        torch.testing.assert_close(ours.double(), true.double(), rtol=2e-6, atol=1e-12)


def test_a_task_without_labels_in_the_step_adds_nothing_and_does_not_move_its_s() -> None:
    outputs, targets, weight, denominators = rows(30)
    targets[:, 2], denominators[2] = math.nan, 0.0
    s = torch.tensor(S, device=DEVICE)
    check(outputs, targets, weight, denominators, s)
    _, sums, to_outputs, to_s = results(
        kernels.multitask_loss, outputs, targets, weight, denominators, s
    )
    assert sums[2] == 0
    assert to_s[2] == 0
    assert (to_outputs[targets.isnan()] == 0).all()
    assert (to_outputs[~targets.isnan()] != 0).all()
    assert to_s[3] == 0, "clamped"
    assert to_s[4] != 0, "on the limit"


@examples(cost=20)
@given(cuts=st.lists(st.integers(0, 100), max_size=3))
def test_parts_add_up_however_rows_are_cut(cuts: list[int]) -> None:
    outputs, targets, weight, denominators = rows(100)
    s = torch.tensor(S, device=DEVICE)
    whole, _ = kernels.multitask_loss(outputs, targets, weight, denominators, s, TERMS, 1.0)
    edges = [0, *sorted(cuts), 100]
    cut = [
        kernels.multitask_loss(
            outputs[a:b], targets[a:b], weight[a:b], denominators, s, TERMS, 1 / (len(edges) - 1)
        )
        for a, b in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(sum(total for total, _ in cut), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("uncertainty", ["specification", "kendall", "none"])
def test_the_module_with_kernels_is_the_module_without(
    uncertainty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = (
        Task(name="ef", column="y", beta=2.0),
        Task(name="opt", column="b", kind="binary"),
        Task(name="aux", column="z", loss="mse", weight=0.3),
        Task(name="ok", column="c", kind="binary", loss="bce"),
    )
    scaling = Scaling(
        *[()] * 7,
        target_mean=(7.0, 0.0, 70_000.0, 0.0),
        target_std=(4.0, 1.0, 5.0, 1.0),
        positive_rate={"opt": 0.24, "ok": 0.5},
    )
    loss = MultiTaskLoss(tasks, scaling, LossConfig(uncertainty=uncertainty)).to(DEVICE)
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.3, -0.7, 1.1, 0.2]))
    outputs, targets, weight, denominators = rows(57)
    outputs, denominators = outputs[:, :4].requires_grad_(), denominators[:4]
    targets = torch.stack(
        [targets[:, 0], targets[:, 1], targets[:, 2] + 70_000, targets[:, 3]], dim=1
    )
    wanted = [outputs, *([loss.log_variance] if uncertainty != "none" else [])]

    def gradients() -> list[Tensor]:
        total, _ = loss(outputs, targets, weight, denominators, 0.5)
        return [total.detach(), *torch.autograd.grad(total, wanted)]

    ours = gradients()
    # as DeepSpeed does in fp16, where targets of 70,000 do not fit
    half = MultiTaskLoss(tasks, scaling, LossConfig(uncertainty=uncertainty)).to(DEVICE).half()
    half.log_variance.data.copy_(loss.log_variance)
    assert half(
        outputs.detach().half(), targets, weight, denominators, 0.5
    ).total.item() == pytest.approx(ours[0].item(), rel=1e-2)
    monkeypatch.setattr(embedcache.kernels, "_KERNEL_DEVICES", ())
    for with_kernel, without in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(with_kernel, without, rtol=1e-5, atol=1e-6)


def test_a_loss_of_the_batchs_mean_takes_the_plain_path() -> None:
    outputs, targets, weight, denominators = rows(57)
    terms = (*TERMS[:4], TaskTerm("batch_focal", gamma=2.0))
    s = torch.tensor(S, device=DEVICE)
    for ours, theirs in zip(
        results(kernels.multitask_loss, outputs, targets, weight, denominators, s, terms),
        results(reference.multitask_loss, outputs, targets, weight, denominators, s, terms),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_opcheck() -> None:
    outputs, targets, weight, denominators = rows(7)
    constants = kernels._loss.pack(TERMS)
    s = torch.tensor(S, device=DEVICE).requires_grad_()
    torch.library.opcheck(
        torch.ops.fusionnet.multitask_loss.default,
        (outputs.requires_grad_(), targets, weight, denominators, s, constants, 0.5),
    )
