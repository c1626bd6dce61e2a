"""Attention without padding is at most twice as far from float64 as the padded one, forward and
backward, and repeats bitwise.
"""

from collections.abc import Callable

import pytest
import torch
from kernel_device import DEVICE, MARKS
from torch import Tensor

from embedcache.encoder.deberta import attention
from embedcache.encoder.deberta.attention import attend, packing_of

pytestmark = MARKS
LENGTHS = (((1, 2, 7, 20), (33,)), ((70,), (128,)))


def case(
    lengths: tuple[tuple[int, ...], ...], one_query: bool, num_heads: int, head_width: int
) -> tuple[list[Tensor], Tensor]:
    """Return [stacked] or [query, stacked], and a gradient of the context."""
    generator = torch.Generator().manual_seed(len(lengths) + head_width)
    num_strings, num_tokens = sum(map(len, lengths)), sum(map(sum, lengths))
    width = num_heads * head_width

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator).to(DEVICE)

    if one_query:
        inputs = [random(num_strings, width), random(num_tokens, 2 * width)]
        return inputs, random(num_strings, width)
    return [random(num_tokens, 3 * width)], random(num_tokens, width)


def outcome(
    attend: Callable[..., Tensor],
    inputs: list[Tensor],
    gradient: Tensor,
    dtype: torch.dtype,
    lengths: tuple[tuple[int, ...], ...],
    num_heads: int,
) -> list[Tensor]:
    """Return the context and the gradient of each input."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    query = leaves[0] if len(leaves) == 2 else None
    context = attend(query, leaves[-1], packing_of(lengths, DEVICE), num_heads)
    return [context, *torch.autograd.grad(context, leaves, gradient.to(dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("one_query", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention(
    lengths: tuple[tuple[int, ...], ...], one_query: bool, dtype: torch.dtype
) -> None:
    num_heads, head_width = 2, 50
    inputs, gradient = case(lengths, one_query, num_heads, head_width)
    inputs = [tensor.to(dtype) for tensor in inputs]  # float64 sees the same numbers
    gradient = gradient.to(dtype)
    plain = attention._Attention.apply
    results = [
        outcome(call, inputs, gradient, cast, lengths, num_heads)
        for call, cast in (
            (attend, dtype),
            (attend, dtype),
            (plain, dtype),
            (plain, torch.float64),
        )
    ]
    for found, again, wanted, exact in zip(*results, strict=True):
        assert torch.equal(found, again), "not repeatable"
        assert found.dtype == dtype
        assert found.shape == exact.shape
        last_place = torch.finfo(dtype).eps / 2 * exact.norm()
        error = (found.double() - exact).norm()
        assert error <= 2 * max((wanted.double() - exact).norm(), last_place), f"{error:.2e}"
        assert error < 0.1 * exact.norm(), "zeros would pass"


@pytest.mark.parametrize("head_width", [1, 17, 64])
@pytest.mark.parametrize("one_query", [False, True])
def test_heads_of_any_width(one_query: bool, head_width: int) -> None:
    lengths = ((3, 5),)
    inputs, gradient = case(lengths, one_query, 3, head_width)
    found, wanted = (
        outcome(call, inputs, gradient, torch.float32, lengths, 3)
        for call in (attend, attention._Attention.apply)
    )
    torch.testing.assert_close(found, wanted)


def test_long_strings_and_float64_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(
        attention.kernels,
        "attention",
        lambda query, stacked, *others: taken.append(len(stacked)) or stacked[:, :8],
    )
    for num_tokens in (128, 129):
        for dtype in (torch.float32, torch.float64):
            stacked = torch.randn(num_tokens, 24, dtype=dtype, device=DEVICE)
            attend(None, stacked, packing_of(((num_tokens,),), DEVICE), 2)
    assert taken == [128]


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # NumPy, interpreting
def test_a_string_that_is_not_finite_spoils_no_other() -> None:
    packing = packing_of(((2, 5, 3),), DEVICE)
    (stacked,), _ = case(((2, 5, 3),), False, 2, 4)
    wanted = attend(None, stacked, packing, 2)
    for start, stop in ((0, 2), (2, 7), (7, 10)):
        spoilt = stacked.clone()
        spoilt[start:stop] = torch.nan
        context = attend(None, spoilt, packing, 2)
        others = torch.tensor([not start <= token < stop for token in range(10)])
        assert torch.equal(context[others], wanted[others])
        assert context[start:stop].isnan().all()


def test_inputs_and_gradients_need_not_be_contiguous() -> None:
    inputs, gradient = case(((2, 5),), True, 2, 8)
    across = [tensor.T.contiguous().T for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in across)
    found, wanted = (
        outcome(attend, each, upstream, torch.float32, ((2, 5),), 2)
        for each, upstream in ((across, gradient.T.contiguous().T), (inputs, gradient))
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
