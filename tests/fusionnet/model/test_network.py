"""The network equals the specified concat-and-project network, with every shortcut; rows of one
string share what they may share.
"""

import pytest
import torch

from embedcache.scaling import VectorScaling
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.model.adapters import StringAdapter
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs

TASKS = (
    Task(name="ef", column="y", head=(16, 8)),
    Task(name="opt", column="b", kind="binary"),
    Task(name="aux", column="z", head_dropout=0.0),
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
)


def network(
    num_numeric: int = 5,
    cardinalities: tuple[int, ...] = (3,),
    strings: tuple[tuple[str, int], ...] = (("a", 10), ("b", 6)),
) -> FusionNetwork:
    torch.manual_seed(0)
    return FusionNetwork(SMALL, TASKS, strings, num_numeric, cardinalities)


def inputs(num_rows: int, num_numeric: int = 5) -> tuple[list[torch.Tensor], RowInputs]:
    vectors = [torch.randn(4, 10), torch.randn(3, 6)]
    ids = torch.stack([torch.randint(0, 4, (num_rows,)), torch.randint(0, 3, (num_rows,))], dim=1)
    numeric, category = torch.randn(num_rows, num_numeric), torch.randint(0, 3, (num_rows, 1))
    return vectors, RowInputs(ids, numeric, category)


def as_specified(net: FusionNetwork, vectors: list[torch.Tensor], rows: RowInputs) -> torch.Tensor:
    """Gather first, then every layer on every row, concat, one projection."""
    encoded = []
    for column, adapter in enumerate(net.adapters.values()):
        gathered = vectors[column][rows.string_id[:, column]]
        encoded.append(adapter.second(adapter.first(gathered)))
    encoded.append(net.numeric[0](rows.numeric))
    for column, embedding in enumerate(net.categories):
        encoded.append(embedding(rows.category[:, column]))
    return net.heads(net.fusion(net.projection(torch.cat(encoded, dim=1))))


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_evaluation_equals_the_specified_order_of_operations(num_rows: int) -> None:
    net = network().eval()
    given = inputs(num_rows)
    found = net(*given)
    assert found.shape == (num_rows, 3)
    torch.testing.assert_close(found, as_specified(net, *given), rtol=1e-5, atol=1e-5)


def test_training_without_dropout_equals_it_too_and_so_do_its_gradients() -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"dropout": 0.0})
    net = FusionNetwork(
        config,
        [task.model_copy(update={"head_dropout": 0.0}) for task in TASKS],
        (("a", 10), ("b", 6)),
        5,
        (3,),
    ).train()
    vectors, rows = inputs(33)
    vectors = [table.requires_grad_() for table in vectors]
    wanted = torch.autograd.grad(
        as_specified(net, vectors, rows).square().sum(),
        [*vectors, *net.parameters()],
        allow_unused=True,
    )
    found = torch.autograd.grad(
        net(vectors, rows).square().sum(),
        [*vectors, *net.parameters()],
        allow_unused=True,
    )
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_vectors_enter_standardised() -> None:
    scaling = VectorScaling(
        mean=tuple(float(k) for k in range(10)), std=tuple(0.5 + k for k in range(10))
    )
    torch.manual_seed(0)
    net = FusionNetwork(
        SMALL, TASKS, (("a", 10), ("b", 6)), 5, (3,), vector_scaling={"a": scaling}
    ).eval()
    vectors, rows = inputs(33)
    standardised = (vectors[0] - torch.tensor(scaling.mean)) / torch.tensor(scaling.std)
    wanted = network().eval()([standardised, vectors[1]], rows)
    torch.testing.assert_close(net(vectors, rows), wanted, rtol=1e-5, atol=1e-5)
    off = FusionNetwork(
        SMALL.model_copy(update={"standardize_vectors": False}),
        TASKS,
        (("a", 10),),
        5,
        (3,),
        vector_scaling={"a": scaling},
    )
    assert off.adapters["a"].inverse_std.eq(1).all()
    assert off.adapters["a"].mean.eq(0).all()


def test_noise_is_added_to_the_features_of_its_part_and_in_training_alone() -> None:
    torch.manual_seed(0)
    quiet = SMALL.model_copy(update={"dropout": 0.0, "feature_noise": {"patient": 0.3}})
    net = FusionNetwork(
        quiet,
        TASKS,
        (("a", 10), ("b", 6)),
        5,
        (3,),
        feature_groups=["patient", "gel", "patient", "gel", "gel"],
    )
    read: list[torch.Tensor] = []
    net.numeric[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    vectors, rows = inputs(4000)
    net.train()(vectors, rows)
    added = read[0] - rows.numeric
    assert added[:, [1, 3, 4]].eq(0).all()
    torch.testing.assert_close(added[:, [0, 2]].std(0), torch.full((2,), 0.3), rtol=0.05, atol=0)
    torch.testing.assert_close(added[:, [0, 2]].mean(0), torch.zeros(2), rtol=0, atol=0.02)
    net.eval()(vectors, rows)
    assert read[1].equal(rows.numeric)


@pytest.mark.parametrize("training", [True, False])
def test_a_linear_skip_adds_a_linear_function_of_the_features_as_they_are(training: bool) -> None:
    quiet = SMALL.model_copy(update={"dropout": 0.0, "feature_noise": {"patient": 0.3}})
    (plain, skipping) = (
        (
            torch.manual_seed(0),
            FusionNetwork(
                quiet.model_copy(update={"linear_skip": skip}),
                TASKS[2:],
                (("a", 10), ("b", 6)),
                5,
                (3,),
                ["patient"] * 5,
            ),
        )[1]
        for skip in (False, True)
    )
    vectors, rows = inputs(33)

    def outputs(net: FusionNetwork) -> torch.Tensor:
        torch.manual_seed(1)
        return net.train(training)(vectors, rows)

    assert outputs(skipping).equal(outputs(plain)), "nothing at first"
    with torch.no_grad():
        skipping.linear_skip.weight.normal_()
    found = outputs(skipping)
    wanted = outputs(plain) + rows.numeric @ skipping.linear_skip.weight.T
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    torch.testing.assert_close(skipping.linear_skip.weight.grad, rows.numeric.sum(0, keepdim=True))
    assert ("linear skip", 5) in skipping.parameter_table()


def test_rows_of_one_string_have_their_own_dropout_masks() -> None:
    torch.manual_seed(0)
    adapter = StringAdapter(10, 24, 16, 0.5).train()
    vectors, ids = torch.randn(2, 10), torch.zeros(50, dtype=torch.int64)
    assert adapter(vectors, ids).unique(dim=0).shape[0] > 40
    assert adapter.eval()(vectors, ids).unique(dim=0).shape[0] == 1


def test_columns_without_numbers_or_categories() -> None:
    net = FusionNetwork(SMALL, TASKS, (("a", 10),), 0, ()).eval()
    nothing = torch.zeros(7, 0)
    rows = RowInputs(torch.randint(0, 4, (7, 1)), nothing, nothing.long())
    found = net([torch.randn(4, 10)], rows)
    assert found.shape == (7, 3)
    assert found.std(0).min() > 0


def test_true_sizes_beside_the_specifications() -> None:
    tasks = (
        Task(name="ef", column="y", head=(256, 64)),
        Task(name="opt", column="b", kind="binary"),
        Task(name="stress", column="z", head_dropout=0.0),
    )
    net = FusionNetwork(ModelConfig(), tasks, (("polymer", 600),), 19, (8,))
    sizes = {name: number for name, number in net.parameter_table()}
    assert sizes["string adapter polymer"] == 600 * 384 + 384 + 2 * 384 + 384 * 256 + 256 + 2 * 256
    assert sizes["numeric encoder"] == 9_984
    assert sizes["category embedding"] == 128
    assert sizes["head ef"] == 147_841
    assert sizes["head opt"] == sizes["head stress"] == 65_793
    assert (
        sizes["fusion transformer"]
        == 4 * (2 * (512 * 512 + 512) + 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512) + 2 * 512
    )
    assert sum(sizes.values()) == sum(parameter.numel() for parameter in net.parameters())
