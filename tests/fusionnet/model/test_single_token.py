"""The single-token fusion is `nn.TransformerEncoder` on sequences of length 1: same function, same
gradients, weights load both ways.
"""

import pytest
import torch
from torch import nn

from fusionnet.kernels import drop_heads
from fusionnet.model.single_token import SingleTokenFusion

WIDTH, HEADS, FEEDFORWARD, LAYERS = 32, 4, 64, 3


def pair(dropout: float = 0.0) -> tuple[SingleTokenFusion, nn.TransformerEncoder]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEEDFORWARD, dropout=dropout, activation="gelu", batch_first=True
    )
    transformer = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    for parameter in transformer.parameters():
        # the layers are clones of one; biases and norms must matter too
        nn.init.normal_(parameter, std=0.3)
    fusion = SingleTokenFusion(WIDTH, HEADS, FEEDFORWARD, LAYERS, dropout)
    fusion.load_transformer(transformer)
    return fusion, transformer


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_forward_and_gradients_equal_the_transformers(num_rows: int) -> None:
    fusion, transformer = pair()
    x = torch.randn(num_rows, WIDTH, requires_grad=True)
    ours = fusion(x)
    theirs = fusion.norm(transformer(x.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if num_rows:
        weight = torch.randn_like(ours)
        (mine,) = torch.autograd.grad((ours * weight).sum(), x)
        (other,) = torch.autograd.grad((theirs * weight).sum(), x)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert mine.abs().max() > 0


def test_queries_and_keys_do_not_matter() -> None:
    _, transformer = pair()
    x = torch.randn(9, 1, WIDTH)
    before = transformer(x)
    with torch.no_grad():
        for layer in transformer.layers:
            layer.self_attn.in_proj_weight[: 2 * WIDTH].normal_()
    torch.testing.assert_close(transformer(x), before)


def test_weights_go_back() -> None:
    fusion, transformer = pair()
    x = torch.randn(9, WIDTH)
    wanted = transformer(x.unsqueeze(1))
    _, other = pair()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    fusion.store_transformer(other)
    torch.testing.assert_close(other(x.unsqueeze(1)), wanted, rtol=1e-5, atol=1e-5)


def test_attention_dropout_drops_whole_heads() -> None:
    torch.manual_seed(0)
    ones = torch.ones(4000, WIDTH)
    dropped = drop_heads(ones, HEADS, 0.25).view(-1, HEADS, WIDTH // HEADS)
    assert ((dropped == 0).all(2) | (dropped == 1 / 0.75).all(2)).all()
    assert abs((dropped[:, :, 0] == 0).float().mean() - 0.25) < 0.02


def test_attention_dropout_has_the_transformers_distribution() -> None:
    # One attention layer alone: nn.MultiheadAttention's own dropout over one key, against ours, by
    # mean and variance.
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.3, batch_first=True)
    x = torch.randn(1, 1, WIDTH).expand(20_000, 1, WIDTH)
    theirs = attention(x, x, x, need_weights=True)[0].squeeze(1)
    value = nn.functional.linear(
        x[:, 0], attention.in_proj_weight[2 * WIDTH :], attention.in_proj_bias[2 * WIDTH :]
    )
    ours = attention.out_proj(drop_heads(value, HEADS, 0.3))
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.01, rtol=0)
    assert theirs.std(0).min() > 0.01


def test_initialisation_has_the_transformers_scale() -> None:
    torch.manual_seed(0)
    fusion = SingleTokenFusion(256, 8, 512, 1, 0.0)
    transformer = nn.TransformerEncoderLayer(256, 8, 512, batch_first=True)
    ours = fusion.layers[0]
    theirs = transformer.self_attn
    assert ours.value.weight.std().item() == pytest.approx(
        theirs.in_proj_weight[512:].std().item(), rel=0.02
    )
    assert ours.output.weight.std().item() == pytest.approx(
        theirs.out_proj.weight.std().item(), rel=0.02
    )
    assert ours.linear1.weight.std().item() == pytest.approx(
        transformer.linear1.weight.std().item(), rel=0.02
    )
