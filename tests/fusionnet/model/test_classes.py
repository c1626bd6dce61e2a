"""Several classes: chances that are those of the equations, in order, and undone weights."""

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config.tasks import LossConfig, Task, output_columns, prediction_columns
from fusionnet.kernels.reference import log_probabilities
from fusionnet.model.forward import to_units
from fusionnet.model.heads import Heads
from fusionnet.model.loss import MultiTaskLoss, class_weights
from fusionnet.model.probability import class_probabilities

GRADES = ("1", "2", "3", "4")
TASKS = (
    Task(name="ef", column="y"),
    Task(name="phase", column="p", kind="multiclass", classes=("a", "b", "c")),
    Task(name="opt", column="b", kind="binary"),
    Task(name="grade", column="g", kind="ordinal", classes=GRADES),
)
SCALING = Scaling(
    *[()] * 7,
    target_mean=(7.0, 0.0, 0.0, 0.0),
    target_std=(4.0, 1.0, 1.0, 1.0),
    positive_rate={"opt": 0.24},
    target_transforms=("standardize",) * 4,
    class_rates={"phase": (0.7, 0.1, 0.2), "grade": (0.25, 0.25, 0.5, 0.0)},
)
NUM_OUTPUTS = 1 + 3 + 1 + 3


def rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    outputs = 2 * torch.randn(num_rows, NUM_OUTPUTS, generator=generator)
    codes = [torch.randint(0, k, (num_rows,), generator=generator) for k in (1, 3, 2, 4)]
    targets = torch.stack(codes, dim=1).float()
    targets[:, 0] = torch.randn(num_rows, generator=generator)
    targets[torch.rand(num_rows, 4, generator=generator) < 0.3] = torch.nan
    return outputs, targets, torch.rand(num_rows, generator=generator)


def test_each_task_has_its_own_columns() -> None:
    assert output_columns(TASKS) == [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 8)]
    assert prediction_columns(TASKS) == [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 9)]
    heads = Heads(6, TASKS)
    assert heads(torch.randn(5, 6)).shape == (5, heads.num_outputs) == (5, NUM_OUTPUTS)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_the_loss_is_the_weighted_cross_entropy_of_observed_labels(num_rows: int) -> None:
    outputs, targets, weight = (x.double() for x in rows(num_rows))
    loss = MultiTaskLoss(TASKS, SCALING, LossConfig(uncertainty="none")).double()
    denominators = (weight.unsqueeze(1) * ~targets.isnan()).sum(0)
    sums = loss(outputs, targets, weight, denominators, 1.0).task_sums
    for number, columns in ((1, slice(1, 4)), (3, slice(5, 8))):
        seen = ~targets[:, number].isnan()
        label = targets[seen, number].long()
        logits = outputs[seen, columns]
        if number == 1:
            each = F.cross_entropy(logits, label, reduction="none")
        else:  # differences of cumulative chances, as they are written
            a = torch.cat([logits[:, :1], -F.softplus(logits[:, 1:])], dim=1).cumsum(1)
            above = F.pad(F.pad(a.sigmoid(), (1, 0), value=1.0), (0, 1), value=0.0)
            each = -(above[:, :-1] - above[:, 1:]).log().gather(1, label[:, None]).squeeze(1)
        torch.testing.assert_close(sums[number], (weight[seen] * each).sum())


@examples(cost=2)
@given(
    outputs=st.lists(st.lists(st.floats(-500, 500), min_size=3, max_size=3), min_size=1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_ordered_chances_sum_to_one_and_have_finite_logs_and_slopes(
    outputs: list[list[float]], dtype: torch.dtype
) -> None:
    x = torch.tensor(outputs, dtype=dtype).requires_grad_()
    log_p = log_probabilities(x, ordered=True)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(x), dtype=dtype))
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert log_p.isfinite().all()
    assert slope.isfinite().all()


def test_an_output_moves_chances_to_higher_classes() -> None:
    low, high = torch.zeros(1, 3), torch.tensor([[2.0, 0, 0]])
    classes = torch.arange(4.0)
    means = [(log_probabilities(x, ordered=True).exp() @ classes).item() for x in (low, high)]
    assert means[0] < means[1]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("given", ["auto", {"a": 5.0, "3": 0.2}, None])
def test_where_the_loss_is_least_the_probability_is_the_true_one(
    number: int, given: object
) -> None:
    """Train logits of one constant row on labels of known shares, and read the probability."""
    names = TASKS[number].classes or ()
    weights = given
    if isinstance(given, dict):
        weights = {name: value for name, value in given.items() if name in names}
    task = TASKS[number].model_copy(update={"class_weights": weights})
    shares = torch.tensor([0.5, 0.3, 0.2, 0.0][: len(names)], dtype=torch.float64)
    shares[-1] = 1 - shares[:-1].sum()
    w = torch.tensor(class_weights(task, SCALING), dtype=torch.float64)
    outputs = torch.zeros(1, task.num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_p = log_probabilities(outputs, ordered=task.kind == "ordinal")
        total = -(shares.clamp_min(1e-9) * w * log_p[0]).sum()
        total.backward()
        return total

    optimizer.step(closure)
    found = class_probabilities(outputs.detach(), task, SCALING, weighted=False)
    torch.testing.assert_close(found[0], shares, atol=2e-3, rtol=0)
    scores = class_probabilities(outputs.detach(), task, SCALING, weighted=True)
    torch.testing.assert_close(scores[0], w * shares / (w * shares).sum(), atol=2e-3, rtol=0)


def test_auto_weights_give_each_class_the_same_share() -> None:
    phase = TASKS[1].model_copy(update={"class_weights": "auto"})
    products = [w * r for w, r in zip(class_weights(phase, SCALING), (0.7, 0.1, 0.2), strict=True)]
    assert products == pytest.approx([1 / 3] * 3)
    grade = TASKS[3].model_copy(update={"class_weights": "auto"})
    assert class_weights(grade, SCALING)[3] == 1  # of a class without train rows
    assert class_weights(grade, SCALING)[:3] == pytest.approx((4 / 3, 4 / 3, 2 / 3))


def test_units_are_numbers_and_chances() -> None:
    outputs, _, _ = rows(9)
    found = to_units(outputs, TASKS, SCALING)
    assert found.shape == (9, 9)
    torch.testing.assert_close(found[:, 0], outputs[:, 0] * 4 + 7)
    torch.testing.assert_close(found[:, 1:4], outputs[:, 1:4].softmax(1))
    torch.testing.assert_close(found[:, 5:].sum(1), torch.ones(9))
