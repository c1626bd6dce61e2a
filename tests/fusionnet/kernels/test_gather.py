"""Rows from distinct vectors: each kernel is at most twice as far from float64 as plain PyTorch,
forward and backward, and repeats bitwise.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from budgets import examples
from exactness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from kernel_device import DEVICE, MARKS, ON_GPU
from torch import Tensor

import fusionnet.kernels as kernels
from embedcache.kernels.reference import _philox as philox
from embedcache.kernels.reference import keep_mask
from fusionnet.kernels import gather, reference, segment_sum

pytestmark = MARKS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, U, D): every B and U, odd and even widths
SHAPES = [(0, 3, 8), (1, 1, 5), (7, 21, 33), (257, 3, 64), (257, 1, 130)]
SHAPES += [(1023 if ON_GPU else 131, 21, 37)]
NARROW = itertools.cycle(DTYPES[1:])
CASES = [
    *((shape, torch.float32) for shape in SHAPES),
    *zip(SHAPES, NARROW, strict=False),
]


def case(
    num_rows: int, num_vectors: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return vectors [U, D], index [B], rows [B, D] and a gradient [B, D]."""
    generator = torch.Generator().manual_seed(num_rows + 1000 * num_vectors)
    vectors, rows, gradient = (
        torch.randn(n, width, generator=generator).to(DEVICE, dtype)
        for n in (num_vectors, num_rows, num_rows)
    )
    return (
        vectors,
        torch.randint(num_vectors, (num_rows,), generator=generator).to(DEVICE),
        rows,
        gradient,
    )


def check(
    op: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor
) -> None:
    """Compare an operator with its plain version, both against float64: output and the gradient of
    every input.
    """
    results = []
    for call, cast in ((op, None), (op, None), (plain, None), (plain, torch.float64)):
        leaves = [tensor.detach().to(cast or tensor.dtype).requires_grad_() for tensor in inputs]
        out = call(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, gradient.to(out.dtype))])
    for found, again, wanted, exact in zip(*results, strict=True):
        assert torch.equal(found, again), "not repeatable"
        assert_close(
            found,
            wanted,
            exact,
            min((t.dtype for t in inputs), key=lambda dtype: -torch.finfo(dtype).eps),
        )


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_gather_add(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    vectors, index, rows, gradient = case(*shape, dtype)
    other, place = torch.randn(2, shape[2]).to(DEVICE, dtype), (index * 7) % 2
    bias = torch.randn(shape[2]).to(DEVICE, dtype)

    def call(add: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda first, second, part, constant: add(
            [(first, index), (second, place)], [part], constant
        )

    check(
        call(kernels.gather_add), call(reference.gather_add), [vectors, other, rows, bias], gradient
    )


def test_gather_add_of_one_table_two_parts_and_of_none() -> None:
    vectors, index, rows, gradient = case(7, 3, 5)
    bias = torch.randn(5).to(DEVICE)
    for add in ("alone", "parts"):
        parts = (lambda rows: []) if add == "alone" else (lambda rows: [rows, 2 * rows])
        check(
            lambda v, r, b, p=parts: kernels.gather_add([(v, index)], p(r), b) + 0 * r,
            lambda v, r, b, p=parts: reference.gather_add([(v, index)], p(r), b) + 0 * r,
            [vectors, rows, bias],
            gradient,
        )
    torch.testing.assert_close(kernels.gather_add([], [rows], bias), rows + bias)


def test_gather_add_of_dozens_of_tables() -> None:
    vectors, index, rows, gradient = case(17, 3, 8)
    bias = torch.randn(8).to(DEVICE)
    places = [(index + shift) % 3 for shift in range(24)]

    def call(add: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda v, r, b: add(
            [((1 + k) * v / 24, place) for k, place in enumerate(places)], [r], b
        )

    check(call(kernels.gather_add), call(reference.gather_add), [vectors, rows, bias], gradient)


def test_wide_bias_and_narrow_rows_give_wide_rows_as_plain_pytorch_does() -> None:
    vectors, index, rows, gradient = case(33, 3, 16)
    bias = torch.randn(16).to(DEVICE)

    def call(add: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda v, r, b: add([(v, index)], [r], b)

    check(
        call(kernels.gather_add),
        call(reference.gather_add),
        [vectors.bfloat16(), rows.bfloat16(), bias],
        gradient,
    )


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_gather_dropout(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    vectors, index, _, gradient = case(*shape, dtype)
    seed = torch.tensor([2**40 + 17], device=DEVICE)
    check(
        lambda v: gather.gather_dropout(v, index, 0.3, seed),
        lambda v: reference.gather_dropout(v, index, 0.3, seed),
        [vectors],
        gradient,
    )


def test_rows_of_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_sum, "ONEHOT_MAX_SEGMENTS", 16)
    for dtype in (torch.float32, torch.bfloat16):
        test_gather_add((7, 21, 6), dtype)
        test_gather_dropout((7, 21, 6), dtype)


def test_non_contiguous_inputs() -> None:
    vectors, index, rows, gradient = case(57, 21, 32)
    seed, bias = torch.tensor([3], device=DEVICE), torch.zeros(32, device=DEVICE)
    spread = torch.stack([index, index + 1], dim=1)[:, 0]
    across, narrow, flipped = (
        rows.T.contiguous().T,
        vectors.repeat_interleave(2, 1)[:, ::2],
        gradient.T.contiguous().T,
    )
    assert not any(tensor.is_contiguous() for tensor in (spread, across, narrow, flipped))
    check(
        lambda v, r: kernels.gather_add([(v, spread)], [r], bias),
        lambda v, r: reference.gather_add([(v, index)], [r], bias),
        [narrow, across],
        flipped,
    )
    check(
        lambda v: gather.gather_dropout(v, spread, 0.5, seed),
        lambda v: reference.gather_dropout(v, index, 0.5, seed),
        [narrow],
        flipped,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_columns", [1, 2])
def test_the_product_and_the_sorted_sum_agree(num_columns: int, dtype: torch.dtype) -> None:
    _, index, _, gradient = case(1023, 21, 48, dtype)
    index = torch.stack([index, (index * 5) % 21], dim=1)[:, :num_columns].contiguous()
    index[index == 20] = 0  # a segment without rows
    exact = reference.segment_sum(gradient.double(), index, 21)
    found = [
        summed(gradient, index, 21, 0.0, None)
        for summed in (segment_sum._sum_onehot, segment_sum._sum_sorted)
    ]
    for total in found:
        assert (total[20] == 0).all()
        assert_close(
            total, reference.segment_sum(gradient, index, 21).float(), exact, torch.float32
        )


def test_many_segments_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    # A product over 300 segments would be right too; it must not be what runs.
    called = []
    monkeypatch.setattr(
        segment_sum,
        "_sum_sorted",
        lambda *arguments: called.append(arguments[2]) or torch.zeros(arguments[2], 6),
    )
    _, index, _, gradient = case(7, 300, 6)
    for num_segments in (3, 300):
        segment_sum.segment_sum(gradient, index.unsqueeze(1) % 3, num_segments, 0.0, None)
    assert called == [300]


@examples(cost=12)
@given(
    p=st.floats(0, 0.95),
    num_rows=st.integers(1, 40),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**62),
)
def test_the_mask_is_philoxs_of_seed_row_and_column(
    p: float, num_rows: int, width: int, seed: int
) -> None:
    key = torch.tensor([seed], device=DEVICE)
    ones = torch.ones(1, width, device=DEVICE)
    kept = (
        gather.gather_dropout(ones, torch.zeros(num_rows, dtype=torch.int64, device=DEVICE), p, key)
        > 0
    )
    assert torch.equal(kept, keep_mask(key, num_rows, width, p))


def test_philox_gives_the_published_words() -> None:
    # Known-answer tests of the authors' Random123 (kat_vectors, philox4x32 10): counter and key all
    # zero, and all ones.
    zero, ones = torch.zeros(1, dtype=torch.int64), torch.full((1,), 0xFFFFFFFF)
    assert [int(word) for word in philox((zero,) * 4, zero, zero)] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]
    assert [int(word) for word in philox((ones,) * 4, ones, ones)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


def test_masks_keep_the_right_share_and_differ_by_row_and_seed() -> None:
    masks = [keep_mask(torch.tensor([seed]), 400, 384, 0.1) for seed in (1, 2)]
    for mask in masks:
        assert abs(mask.float().mean() - 0.9) < 5 * (0.09 / mask.numel()) ** 0.5
        assert mask.unique(dim=0).shape[0] == 400
        assert abs(mask.float().mean(0) - 0.9).max() < 6 * (0.09 / 400) ** 0.5
    agreement = (masks[0] == masks[1]).float().mean()
    # 0.9^2 + 0.1^2: independent
    assert abs(agreement - 0.82) < 5 * (0.82 * 0.18 / masks[0].numel()) ** 0.5


def test_the_seed_comes_from_torchs_generator() -> None:
    ones, index = torch.ones(1, 64, device=DEVICE), torch.zeros(9, dtype=torch.int64, device=DEVICE)
    torch.manual_seed(5)
    first, second = (
        kernels.gather_dropout(ones, index, 0.5),
        kernels.gather_dropout(ones, index, 0.5),
    )
    torch.manual_seed(5)
    assert torch.equal(kernels.gather_dropout(ones, index, 0.5), first)
    assert not torch.equal(first, second)


OPERATORS = {
    "gather_add": lambda v, i, r, g: (
        torch.ops.fusionnet.gather_add.default,
        (v, torch.stack([i, i], 1), r),
    ),
    "gather_add without rows": lambda v, i, r, g: (
        torch.ops.fusionnet.gather_add.default,
        (v, i.unsqueeze(1), None),
    ),
    "gather_dropout": lambda v, i, r, g: (
        torch.ops.fusionnet.gather_dropout.default,
        (v, i, 0.25, torch.tensor([9], device=DEVICE)),
    ),
    "segment_sum": lambda v, i, r, g: (
        torch.ops.fusionnet.segment_sum.default,
        (g, i.unsqueeze(1), 3, 0.0, None),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    vectors, index, rows, gradient = case(7, 3, 8)
    operator, arguments = OPERATORS[name](
        vectors.requires_grad_(), index, rows.requires_grad_(), gradient
    )
    torch.library.opcheck(operator, arguments)
