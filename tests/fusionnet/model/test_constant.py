"""Constant linear layers: the function of plain ones, whatever the layout, dtype and device
library.
"""

import pytest
import torch
from torch.nn import functional as F

from fusionnet.model import constant
from fusionnet.model.constant import ConstantLinear, can_lay_out

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (1025,), (4, 5)])
def test_the_function_is_that_of_a_linear_layer(
    dtype: torch.dtype, has_bias: bool, shape: tuple[int, ...]
) -> None:
    weight, x = torch.randn(37, 53).to(dtype), torch.randn(*shape, 53)
    bias = torch.randn(37).to(dtype) if has_bias else None
    found = ConstantLinear(weight, bias)(x)
    assert found.dtype == dtype
    assert found.shape == (*shape, 37)
    exact = F.linear(x.to(dtype).double(), weight.double(), None if bias is None else bias.double())
    off, plain_off = (
        (each.double() - exact).abs().max() if exact.numel() else torch.zeros(())
        for each in (found, F.linear(x.to(dtype), weight, bias))
    )
    assert off <= 2 * plain_off + 1e-6


def test_inputs_need_not_be_contiguous() -> None:
    weight, x = torch.randn(8, 6), torch.randn(9, 12)
    linear = ConstantLinear(weight.t().contiguous().t(), None)
    torch.testing.assert_close(linear(x[:, ::2]), x[:, ::2] @ weight.t())
    torch.testing.assert_close(linear(x[:, 6:]), x[:, 6:] @ weight.t())


def test_a_laid_out_weight_is_a_copy_of_its_own() -> None:
    weight, x = torch.randn(8, 6), torch.randn(5, 6)
    if not can_lay_out(weight):
        pytest.skip("oneDNN is not in this build of torch")
    linear = ConstantLinear(weight, None)
    before = linear(x)
    weight.zero_()
    assert torch.equal(linear(x), before)
    assert before.abs().max() > 0


def test_without_the_library_the_weight_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = torch.randn(8, 6), torch.randn(8), torch.randn(5, 6)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_lay_out(weight)
    assert torch.equal(ConstantLinear(weight, bias)(x), F.linear(x, weight, bias))
    monkeypatch.undo()
    assert not can_lay_out(weight.double())
    assert not can_lay_out(weight.to("meta"))


@pytest.mark.parametrize("laid_out", [True, False])
def test_no_gradient_passes(laid_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not laid_out:
        monkeypatch.setattr(constant, "can_lay_out", lambda weight: False)
    linear = ConstantLinear(torch.nn.Parameter(torch.randn(8, 6)), None)
    assert not linear(torch.randn(5, 6, requires_grad=True)).requires_grad
