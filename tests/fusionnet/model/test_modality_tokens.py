"""Modality tokens are `nn.TransformerEncoder` over [CLS] and the parts of a row; the MLP is as
large as the single-token fusion; groups are the config's.
"""

import pytest
import torch
from torch import nn

from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.model.modality_tokens import ModalityFusion, ModalityFusionLayer
from fusionnet.model.network import FusionNetwork
from fusionnet.model.single_token import (
    MLPFusion,
    SingleTokenFusion,
    SingleTokenFusionLayer,
    Stream,
)
from fusionnet.rows.tensors import RowInputs

WIDTH, HEADS, FEEDFORWARD, LAYERS, PARTS = 32, 4, 64, 3, 5
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
TASKS = (Task(name="ef", column="y", head=(16, 8)), Task(name="opt", column="b", kind="binary"))


def pair(dropout: float = 0.0) -> tuple[ModalityFusion, nn.TransformerEncoder]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEEDFORWARD, dropout=dropout, activation="gelu", batch_first=True
    )
    transformer = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    for parameter in transformer.parameters():
        # the layers are clones of one; biases and norms must matter too
        nn.init.normal_(parameter, std=0.3)
    fusion = ModalityFusion(PARTS, WIDTH, HEADS, FEEDFORWARD, LAYERS, dropout)
    fusion.load_transformer(transformer)
    return fusion, transformer


def plainly(
    fusion: ModalityFusion, transformer: nn.TransformerEncoder, parts: list[torch.Tensor]
) -> torch.Tensor:
    """All tokens through all layers, and the first taken out of the result."""
    tokens = torch.stack(parts, dim=1) + fusion.kinds
    return fusion.norm(
        transformer(torch.cat([fusion.cls.expand(len(tokens), 1, -1), tokens], dim=1))[:, 0]
    )


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_forward_and_all_gradients_equal_the_transformers(num_rows: int) -> None:
    fusion, transformer = (module.double() for module in pair())
    parts = [
        torch.randn(num_rows, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(PARTS)
    ]
    ours, theirs = fusion(parts), plainly(fusion, transformer, parts)
    torch.testing.assert_close(ours, theirs)
    if num_rows == 0:
        return
    weight = torch.randn_like(ours)
    own = [*parts, fusion.cls, fusion.kinds]
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), own),
        torch.autograd.grad((theirs * weight).sum(), own),
        strict=True,
    ):
        assert (mine - other).norm() <= 1e-9 * other.norm()
        assert other.norm() > 1e-3
    (fusion(parts) * weight).sum().backward()
    (plainly(fusion, transformer, parts) * weight).sum().backward()
    for layer, other in zip(fusion.layers, transformer.layers, strict=True):
        theirs = [
            *other.self_attn.in_proj_weight.grad.chunk(3),
            other.self_attn.in_proj_bias.grad.chunk(3)[0],
            other.self_attn.in_proj_bias.grad.chunk(3)[2],
        ]
        ours = [
            each.grad
            for each in (
                layer.query.weight,
                layer.key.weight,
                layer.value.weight,
                layer.query.bias,
                layer.value.bias,
            )
        ]
        for found, wanted in zip(ours, theirs, strict=True):
            assert (found - wanted).norm() <= 1e-9 * wanted.norm()
        for name in ("linear1", "linear2", "norm1", "norm2"):
            found, wanted = getattr(layer, name).weight.grad, getattr(other, name).weight.grad
            assert (found - wanted).norm() <= 1e-9 * wanted.norm(), name


def test_attention_matters() -> None:
    fusion, _ = pair()
    parts = [torch.randn(9, WIDTH) for _ in range(PARTS)]
    before = fusion(parts)
    for place in range(PARTS):  # every token reaches [CLS], and is told from the others
        changed = list(parts)
        changed[place] = torch.randn(9, WIDTH)
        assert (fusion(changed) - before).abs().max() > 0.01
    assert (fusion(parts[::-1]) - before).abs().max() > 0.01
    with torch.no_grad():
        fusion.layers[-1].query.weight.normal_()
    assert (fusion(parts) - before).abs().max() > 0.01


def test_with_a_single_token_it_is_the_single_token_layer() -> None:
    torch.manual_seed(0)
    single, layer = (
        SingleTokenFusionLayer(WIDTH, HEADS, FEEDFORWARD, 0.0),
        ModalityFusionLayer(WIDTH, HEADS, FEEDFORWARD, 0.0),
    )
    layer.load_state_dict(single.state_dict(), strict=False)
    x = torch.randn(7, WIDTH)
    tokens = x.unsqueeze(1)
    found, wanted = layer(Stream(tokens, tokens)), single(Stream(x, x))
    torch.testing.assert_close(found.state.squeeze(1), wanted.state, rtol=1e-5, atol=1e-5)


def test_a_bias_of_the_keys_does_not_matter() -> None:
    _, transformer = pair()
    x = torch.randn(9, PARTS, WIDTH)
    before = transformer(x)
    with torch.no_grad():
        for layer in transformer.layers:
            layer.self_attn.in_proj_bias[WIDTH : 2 * WIDTH].normal_()
    torch.testing.assert_close(transformer(x), before, rtol=1e-4, atol=1e-4)


def test_weights_go_back() -> None:
    fusion, transformer = pair()
    x = torch.randn(9, PARTS + 1, WIDTH)
    wanted = transformer(x)
    _, other = pair()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    fusion.store_transformer(other)
    torch.testing.assert_close(other(x), wanted, rtol=1e-5, atol=1e-5)


def test_dropout_has_the_transformers_distribution() -> None:
    # One layer, one row many times: mean and spread of [CLS] over dropout masks, ours and torch's.
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEEDFORWARD, dropout=0.3, activation="gelu", batch_first=True
    )
    ours = ModalityFusionLayer(WIDTH, HEADS, FEEDFORWARD, 0.3)
    ours.load_transformer(theirs)
    x = torch.randn(1, PARTS, WIDTH).expand(20_000, -1, -1)
    mine, other = ours(Stream(x, x), num_queries=1).state.squeeze(1), theirs(x)[:, 0]
    torch.testing.assert_close(mine.mean(0), other.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(mine.std(0), other.std(0), atol=0.03, rtol=0)
    assert other.std(0).min() > 0.1


@pytest.mark.parametrize(("width", "feedforward"), [(32, 48), (512, 2048), (48, 1000)])
def test_the_mlp_has_as_many_parameters_as_the_transformer(width: int, feedforward: int) -> None:
    transformer = SingleTokenFusion(width, 4, feedforward, 3, 0.1)
    mlp = MLPFusion(width, feedforward, 3, 0.1)
    wanted, found = (
        sum(parameter.numel() for parameter in module.parameters()) for module in (transformer, mlp)
    )
    assert abs(found - wanted) < 0.02 * wanted


def network(fusion: str, dropout: float = 0.1) -> FusionNetwork:
    torch.manual_seed(0)
    tasks = [task.model_copy(update={"head_dropout": dropout}) for task in TASKS]
    config = SMALL.model_copy(update={"fusion": fusion, "dropout": dropout})
    return FusionNetwork(config, tasks, (("a", 10), ("b", 6)), 5, (3,), ["x", "y", "x", "y", "y"])


def inputs(num_rows: int) -> tuple[list[torch.Tensor], RowInputs]:
    ids = torch.stack([torch.randint(0, 4, (num_rows,)), torch.randint(0, 3, (num_rows,))], dim=1)
    vectors, numeric = [torch.randn(4, 10), torch.randn(3, 6)], torch.randn(num_rows, 5)
    return vectors, RowInputs(ids, numeric, torch.randint(0, 3, (num_rows, 1)))


def as_specified(net: FusionNetwork, vectors: list[torch.Tensor], rows: RowInputs) -> torch.Tensor:
    """Gather first, project each token on its own, take all tokens through all layers."""
    encoded = []
    for column, adapter in enumerate(net.adapters.values()):
        gathered = vectors[column][rows.string_id[:, column]]
        encoded.append(adapter.second(adapter.first(gathered)))
    for encoder, group in zip(net.numeric, ([0, 2], [1, 3, 4]), strict=True):
        encoded.append(encoder(rows.numeric[:, group]))
    for column, embedding in enumerate(net.categories):
        encoded.append(embedding(rows.category[:, column]))
    weights = net.projection.weight.split([each.shape[1] for each in encoded], dim=1)
    tokens = [net.fusion.cls.expand(rows.num_rows, -1)]
    for each, weight, kind in zip(encoded, weights, net.fusion.kinds, strict=True):
        tokens.append(each @ weight.T + kind)
    x = torch.stack(tokens, dim=1)
    for layer in net.fusion.layers:
        x = layer(Stream(x, x)).state
    return net.heads(net.fusion.norm(x[:, 0]))


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_the_network_with_modality_tokens_equals_the_plain_order_of_operations(
    num_rows: int,
) -> None:
    net, given = network("modality").eval(), inputs(num_rows)
    found = net(*given)
    assert found.shape == (num_rows, 2)
    torch.testing.assert_close(found, as_specified(net, *given), rtol=1e-5, atol=1e-5)
    without = network("modality", dropout=0.0).train()
    gradients = [
        torch.autograd.grad(
            run(*given).square().sum(), list(without.parameters()), allow_unused=True
        )
        for run in (without, lambda *x: as_specified(without, *x))
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_group_is_a_token_and_its_features_reach_no_other() -> None:
    net = network("modality").eval()
    vectors, rows = inputs(7)
    before = [summand.on_rows() for summand in net.summands(vectors, rows)]
    rows.numeric[:, 2] += 1  # of group x
    after = [summand.on_rows() for summand in net.summands(vectors, rows)]
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert [name for name, _ in net.parameter_table()][2:4] == [
        "numeric encoder x",
        "numeric encoder y",
    ]
    for each in ("joint", "modality", "mlp"):
        made = network(each)
        assert sum(size for _, size in made.parameter_table()) == sum(
            parameter.numel() for parameter in made.parameters()
        )


def test_a_part_of_every_kind_can_be_missing() -> None:
    net = FusionNetwork(
        SMALL.model_copy(update={"fusion": "modality"}), TASKS, (("a", 10),), 0, ()
    ).eval()
    nothing = torch.zeros(4, 0)
    rows = RowInputs(torch.arange(4).unsqueeze(1), nothing, nothing.long())
    found = net([torch.randn(4, 10)], rows)
    assert found.std(0).min() > 0


def test_without_layers_there_is_nothing_to_read_out() -> None:
    with pytest.raises(ValueError, match="needs num_layers of at least 1"):
        ModelConfig(fusion="modality", num_layers=0)


def losses(fusion: str, num_steps: int) -> list[float]:
    """Return the mean square error of 32 rows with targets of variance 1 over some steps."""
    net = network(fusion, dropout=0.0).train()
    torch.manual_seed(1)
    given, wanted = inputs(32), torch.randn(32, 2)
    adam = torch.optim.AdamW(net.parameters(), lr=3e-3)
    found = []
    for _ in range(num_steps):
        loss = (net(*given) - wanted).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["joint", "modality", "mlp"])
def test_each_fusion_learns_32_rows_by_heart_the_same_way_each_time(fusion: str) -> None:
    found = losses(fusion, 75)
    assert found[-1] < 0.06
    assert losses(fusion, 4) == found[:4]
