"""Dropout of GELU: the kernel is at most twice as far from float64 as plain PyTorch, forward and
backward, and repeats bitwise.
"""

import itertools

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS, ON_GPU
from torch.nn import functional as F

from embedcache.kernels.reference import keep_mask
from fusionnet import kernels
from fusionnet.kernels import reference
from fusionnet.kernels.gelu_dropout import gelu_dropout

pytestmark = MARKS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(0, 8), (1, 5), (7, 33), (2, 3, 600), (257, 600) if ON_GPU else (17, 512)]
CASES = [
    *itertools.product(SHAPES, (0.3,), DTYPES),
    (SHAPES[3], 0.0, torch.bfloat16),
]


@pytest.mark.parametrize(("shape", "p", "dtype"), CASES, ids=str)
def test_output_and_gradient(shape: tuple[int, ...], p: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    x, gradient = (
        (2 * torch.randn(shape, generator=generator)).to(DEVICE, dtype) for _ in range(2)
    )
    seed = torch.tensor([2**40 + 17], device=DEVICE)
    results = []
    for call, cast in (
        (gelu_dropout, dtype),
        (gelu_dropout, dtype),
        (reference.gelu_dropout, dtype),
        (reference.gelu_dropout, torch.float64),
    ):
        leaf = x.to(cast, copy=True).requires_grad_()
        y = call(leaf, p, seed)
        results.append([y, *torch.autograd.grad(y, leaf, gradient.to(cast))])
    for found, again, plain, exact in zip(*results, strict=True):
        assert torch.equal(found, again), "not repeatable"
        assert_close(found, plain, exact, dtype)


def test_what_lies_apart() -> None:
    x, gradient = (torch.randn(33, 21, device=DEVICE).T for _ in range(2))
    seed = torch.tensor([3], device=DEVICE)
    leaves = [x.clone().requires_grad_(), x.clone().contiguous().requires_grad_()]
    assert not leaves[0].is_contiguous()
    outputs = [gelu_dropout(leaf, 0.4, seed) for leaf in leaves]
    assert torch.equal(*outputs)
    found, wanted = (
        torch.autograd.grad(y, leaf, gradient) for y, leaf in zip(outputs, leaves, strict=True)
    )
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("num", [1, 1023, 5000])
def test_the_mask_is_philoxs_of_seed_line_and_place(num: int) -> None:
    seed = torch.tensor([2**61 + 5], device=DEVICE)
    kept = gelu_dropout(torch.ones(num, device=DEVICE), 0.4, seed) > 0
    lines = keep_mask(seed, -(-num // reference.GELU_LINE), reference.GELU_LINE, 0.4)
    assert torch.equal(kept, lines.flatten()[:num])


def test_the_operation_takes_the_kernel_where_something_is_dropped() -> None:
    x = torch.randn(65, 48, device=DEVICE)
    assert torch.equal(kernels.gelu_dropout(x, 0.0), F.gelu(x))
    torch.manual_seed(5)
    first, second = (kernels.gelu_dropout(x, 0.5) for _ in range(2))
    torch.manual_seed(5)
    seed = torch.randint(2**62, (1,), device=DEVICE)
    assert torch.equal(gelu_dropout(x, 0.5, seed), first)
    assert not torch.equal(first, second)
