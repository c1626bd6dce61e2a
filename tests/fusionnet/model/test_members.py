"""Members of an ensemble are the single networks that their weights make, each trained by its own
loss; their predictions are means.
"""

import pytest
import torch
from torch import Tensor

from embedcache.scaling import Scaling
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.model.forward import to_units
from fusionnet.model.loss import MultiTaskLoss
from fusionnet.model.members import members_of
from fusionnet.model.network import FusionNetwork
from fusionnet.model.uncertainty import spread_in_units
from fusionnet.rows.tensors import RowInputs

TASKS = (
    Task(name="ef", column="y", head=(16, 8)),
    Task(name="opt", column="b", kind="binary"),
    Task(name="phase", column="p", kind="multiclass", classes=("a", "b", "c")),
    Task(name="aux", column="z", loss="mse", weight=0.3, head_dropout=0.0),
)
SCALING = Scaling(
    *[()] * 7,
    target_mean=(7.0, 0.0, 0.0, 10.0),
    target_std=(4.0, 1.0, 1.0, 5.0),
    positive_rate={"opt": 0.24},
    target_transforms=("log10", *("standardize",) * 3),
    class_rates={"phase": (0.7, 0.1, 0.2)},
)
SMALL = ModelConfig(
    adapter_hidden=24,
    adapter_width=16,
    numeric_hidden=8,
    numeric_width=12,
    category_width=4,
    fusion_width=32,
    num_layers=2,
    num_heads=4,
    feedforward=48,
    linear_skip=True,
)
NUM, NUM_OUTPUTS = 3, 6
FORMS = ("joint", "modality", "mlp")


def network(fusion: str = "joint", **changes: object) -> FusionNetwork:
    """Return a network of members in which no weight is trivial."""
    torch.manual_seed(0)
    config = {"fusion": fusion, "members": NUM, "member_layers": 2, **changes}
    net = FusionNetwork(
        SMALL.model_copy(update=config), TASKS, (("a", 10),), 5, (3,), ["x", "y", "x", "y", "y"]
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def single(net: FusionNetwork, fusion: str, member: int) -> FusionNetwork:
    """Return the network of one member, its factors in the projection, with heads of its own."""
    alone = network(fusion, members=1)
    state = dict(net.state_dict())
    factors = state.pop("fusion.members.weight")[member]
    for name in ("projection.weight", "projection.bias", "fusion.cls", "fusion.kinds"):
        if name in state:
            columns = factors.unsqueeze(1) if name == "projection.weight" else factors
            state[name] = state[name] * columns
    own = {name: value[member] for name, value in state.items() if name.startswith("heads.")}
    alone.load_state_dict({**state, **own})
    return alone


def rows(num_rows: int) -> tuple[list[Tensor], RowInputs, Tensor, Tensor]:
    torch.manual_seed(num_rows)
    ids, category = torch.randint(0, 4, (num_rows, 1)), torch.randint(0, 3, (num_rows, 1))
    targets = torch.stack([torch.randint(0, k, (num_rows,)) for k in (9, 2, 3, 9)], dim=1).float()
    targets[torch.rand(num_rows, 4) < 0.3] = torch.nan
    inputs = RowInputs(ids, torch.randn(num_rows, 5), category)
    return [torch.randn(4, 10)], inputs, targets, torch.rand(num_rows)


def loss_of(tasks: tuple[Task, ...] = TASKS) -> MultiTaskLoss:
    loss = MultiTaskLoss(tasks, SCALING, LossConfig())
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.3, -0.7, 1.1, 0.2]))
    return loss


@pytest.mark.parametrize("fusion", FORMS)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_each_members_outputs_are_those_of_its_own_network(fusion: str, num_rows: int) -> None:
    net = network(fusion).eval()
    vectors, inputs, _, _ = rows(num_rows)
    members = members_of(net(vectors, inputs), NUM_OUTPUTS)
    assert len(members) == NUM
    for number, found in enumerate(members):
        wanted = single(net, fusion, number).eval()(vectors, inputs)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["row", "batch"])
def test_the_loss_and_every_gradient_are_the_mean_of_theirs(reduction: str) -> None:
    tasks = tuple(
        task.model_copy(update={"reduction": reduction}) if task.kind == "binary" else task
        for task in TASKS
    )
    net, loss = network(dropout=0.0).eval(), loss_of(tasks)
    (vectors,), inputs, targets, weight = rows(33)
    denominators = 2 * (weight.unsqueeze(1) * ~targets.isnan()).sum(0)
    vectors.requires_grad_()

    def parts(each: FusionNetwork) -> tuple[Tensor, Tensor, list[Tensor]]:
        total, sums = loss(each([vectors], inputs), targets, weight, denominators, 0.5)
        shared = [vectors, loss.log_variance, each.fusion.layers[1].linear1.weight]
        return total, sums, list(torch.autograd.grad(total, shared))

    total, sums, gradients = parts(net)
    alone = [parts(single(net, "joint", number).eval()) for number in range(NUM)]
    torch.testing.assert_close(total, torch.stack([each[0] for each in alone]).mean())
    torch.testing.assert_close(sums, torch.stack([each[1] for each in alone]).mean(0))
    for place, found in enumerate(gradients):
        wanted = torch.stack([each[2][place] for each in alone]).mean(0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_predictions_are_means_in_units_and_their_spread_is_the_members() -> None:
    outputs = torch.randn(9, NUM * NUM_OUTPUTS)
    for unit in ("probability", "score"):
        alone = [to_units(each, TASKS, SCALING, unit) for each in members_of(outputs, NUM_OUTPUTS)]
        apart = torch.stack(alone)
        torch.testing.assert_close(to_units(outputs, TASKS, SCALING, unit), apart.mean(0))
        spread = spread_in_units(outputs, TASKS, SCALING, unit)
        torch.testing.assert_close(spread, (apart - apart.mean(0)).square().mean(0).sqrt())
        assert spread.min() > 0
    assert not to_units(outputs, TASKS, SCALING)[:, 0].allclose(
        to_units(torch.stack(members_of(outputs, NUM_OUTPUTS)).mean(0), TASKS, SCALING)[:, 0]
    ), "a mean of logarithms is no mean"
    assert spread_in_units(outputs[:, :NUM_OUTPUTS], TASKS, SCALING).eq(0).all()


@pytest.mark.parametrize("fusion", FORMS)
def test_members_draw_masks_of_their_own(fusion: str) -> None:
    net = network(fusion)
    with torch.no_grad():
        net.fusion.members.weight.fill_(1.0)
        for parameter in net.heads.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    vectors, inputs, _, _ = rows(33)
    same = members_of(net.eval()(vectors, inputs), NUM_OUTPUTS)
    torch.testing.assert_close(same[0], same[1])
    drawn = members_of(net.train()(vectors, inputs), NUM_OUTPUTS)
    assert (drawn[0] - drawn[1]).abs().mean() > 0.01


@pytest.mark.parametrize("fusion", FORMS)
def test_one_member_is_the_network_without_any(fusion: str) -> None:
    one, other = (network(fusion, members=1, member_layers=own) for own in (1, 2))
    assert not [name for name, _ in one.named_parameters() if "members" in name]
    assert {name: value.shape for name, value in one.state_dict().items()} == {
        name: value.shape for name, value in other.state_dict().items()
    }
    vectors, inputs, _, _ = rows(33)
    assert one.eval()(vectors, inputs).equal(other.eval()(vectors, inputs))
    assert one(vectors, inputs).shape == (33, NUM_OUTPUTS)


def test_members_start_apart_by_signs_and_are_counted() -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"members": 8, "member_layers": 1})
    net = FusionNetwork(config, TASKS, (("a", 10),), 5, (3,))
    signs = net.fusion.members.weight
    assert signs.abs().eq(1).all()
    assert len(signs.unique(dim=0)) == 8
    sizes = net.parameter_table()
    assert sum(size for _, size in sizes) == sum(each.numel() for each in net.parameters())


def test_what_is_before_the_members_own_layers_is_computed_once() -> None:
    seen: list[int] = []
    net = network(member_layers=1).eval()
    for layer in net.fusion.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0].state)))
    vectors, inputs, _, _ = rows(7)
    net(vectors, inputs)
    assert seen == [7, 7 * NUM]


def test_more_own_layers_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="member_layers are some of num_layers, found 5 of 2"):
        ModelConfig(num_layers=2, members=2, member_layers=5)
