"""`Linear` is `nn.Linear`, its gradients no further from float64."""

from typing import Any

import pytest
import torch
from kernel_device import DEVICE, MARKS
from torch import Tensor, nn

from fusionnet.model.linear import Linear, cast_at_once

pytestmark = MARKS
SHAPES = [(7, 33, 5), (257, 64, 48), (2, 3, 8, 16)]


def gradients(kind: type[nn.Linear], shape: tuple[int, ...]) -> list[Tensor]:
    """Return output and gradients of input, weight and bias, after two backward passes."""
    torch.manual_seed(1)
    *rows, width_in, width_out = shape
    layer = kind(width_in, width_out).to(DEVICE)
    x = torch.randn(*rows, width_in).to(DEVICE).requires_grad_()
    toward = torch.randn(*rows, width_out).to(DEVICE)
    if kind is nn.Linear:
        layer, x, toward = layer.double(), x.detach().double().requires_grad_(), toward.double()
    for _ in range(2):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind is not nn.Linear):
            y = layer(x)
        (y * toward.to(y.dtype)).sum().backward()
    found: list[Any] = [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]
    return found


class Plain(nn.Linear):
    """`nn.Linear` in autocast's precision."""


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_at_least_as_near_as_the_plain_ones(shape: tuple[int, ...]) -> None:
    exact = gradients(nn.Linear, shape)
    found, plain = gradients(Linear, shape), gradients(Plain, shape)
    assert (found[0].dtype, found[2].dtype) == (torch.bfloat16, torch.float32)
    for ours, other, wanted in zip(found, plain, exact, strict=True):
        allowed = 1.05 * (other - wanted).norm() + 1e-6 * wanted.norm()
        assert (ours - wanted).norm() <= allowed
        assert wanted.norm() > 0


def test_weights_are_cast_at_once_and_only_inside() -> None:
    layers = nn.Sequential(Linear(6, 5), nn.ReLU(), Linear(5, 3)).to(DEVICE)
    x = torch.randn(9, 6).to(DEVICE)

    def gradients() -> list[Tensor]:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = layers(x).float().square().sum()
        return list(torch.autograd.grad(loss, list(layers.parameters())))

    wanted = gradients()
    with cast_at_once(layers, torch.bfloat16):
        assert all(map(torch.equal, gradients(), wanted))
        with torch.no_grad():
            layers[0].weight.mul_(2.0)
        assert all(map(torch.equal, gradients(), wanted)), "the cast is read"
    assert not torch.equal(gradients()[0], wanted[0])


def test_it_is_nn_linear_where_no_gradient_or_autocast_asks() -> None:
    layer, x = Linear(4, 3).to(DEVICE), torch.randn(5, 4).to(DEVICE)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]
