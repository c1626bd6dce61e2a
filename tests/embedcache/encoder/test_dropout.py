"""Dropout by bits has dropout's distribution, its expectation, and a gradient through the very mask
of the forward pass.
"""

import pytest
import torch

from embedcache.encoder.dropout import Dropout, dropout, keep_mask, masked

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (257, 1023), (4, 5, 6)])
def test_elements_are_zeroed_or_scaled_and_the_gradient_uses_the_same_mask(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = (torch.rand(shape) + 1).to(dtype).requires_grad_()
    y = dropout(x, 0.1, training=True)
    kept = y != 0
    torch.testing.assert_close(
        y[kept], (x / 0.9).to(dtype)[kept], rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=0
    )
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(
        x.grad, torch.where(kept, torch.tensor(1 / 0.9), torch.tensor(0.0)).to(dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_dropped_is_zero_whatever_it_was(dtype: torch.dtype) -> None:
    x = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, -1.0, torch.nan, torch.inf, -torch.inf, -0.0],
        dtype=dtype,
    )
    keep = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.int16)
    y = masked(x, keep)
    assert torch.equal(y[:4], torch.zeros(4, dtype=dtype))
    assert y[4].isnan()
    assert torch.equal(y[5:].view(torch.uint8), x[5:].view(torch.uint8))  # bit for bit


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_p_everywhere(p: float) -> None:
    torch.manual_seed(0)
    dropped = keep_mask(torch.Size((2000, 512)), p) == 0
    error = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(dropped.float().mean() - p) < 4 * error
    # each of a word's four numbers is dropped as often as the others
    by_column = dropped.float().mean(0)
    assert (by_column - p).abs().max() < 5 * (p * (1 - p) / 2000) ** 0.5
    neighbours = (dropped[:, 1:] & dropped[:, :-1]).float().mean()
    assert abs(neighbours - p * p) < 5 * (p * p / dropped.numel()) ** 0.5


def test_it_is_seeded_and_off_in_evaluation() -> None:
    x = torch.randn(64, 65)
    torch.manual_seed(3)
    first = dropout(x, 0.2, training=True)
    second = dropout(x, 0.2, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.2, training=True))
    assert not torch.equal(first, second)
    assert torch.equal(Dropout(0.2).eval()(x), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)


def test_non_contiguous_inputs() -> None:
    x = torch.rand(33, 17).t() + 1
    y = dropout(x, 0.3, training=True)
    torch.testing.assert_close((y != 0) * (x / 0.7), y)
