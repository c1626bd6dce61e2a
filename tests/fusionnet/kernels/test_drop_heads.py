"""Dropout of whole heads: the kernel is at most twice as far from float64 as plain PyTorch, forward
and backward, drops what its seed says and repeats bitwise.
"""

import itertools

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS

from embedcache.kernels.reference import keep_mask
from fusionnet import kernels
from fusionnet.kernels import reference
from fusionnet.kernels.drop_heads import drop_heads

pytestmark = MARKS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(0, 8, 2), (1, 5, 5), (7, 33, 3), (57, 112, 7), (9, 512, 8)]  # B, D, H


@pytest.mark.parametrize(("shape", "dtype"), [*itertools.product(SHAPES, DTYPES)], ids=str)
def test_output_and_gradient(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    *shape, num_heads = shape
    generator = torch.Generator().manual_seed(num_heads)
    x, gradient = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
    seed = torch.tensor([2**40 + 17], device=DEVICE)
    results = []
    for call, cast in (
        (drop_heads, dtype),
        (drop_heads, dtype),
        (reference.drop_heads, dtype),
        (reference.drop_heads, torch.float64),
    ):
        leaf = x.to(cast, copy=True).requires_grad_()
        y = call(leaf, num_heads, 0.3, seed)
        results.append([y, *torch.autograd.grad(y, leaf, gradient.to(cast))])
    for found, again, plain, exact in zip(*results, strict=True):
        assert torch.equal(found, again), "not repeatable"
        assert_close(found, plain, exact, dtype)


def test_what_lies_apart() -> None:
    x, gradient = (torch.randn(24, 13, device=DEVICE).T for _ in range(2))
    seed = torch.tensor([3], device=DEVICE)
    leaves = [x.clone().requires_grad_(), x.clone().contiguous().requires_grad_()]
    assert not leaves[0].is_contiguous()
    outputs = [drop_heads(leaf, 4, 0.4, seed) for leaf in leaves]
    assert torch.equal(*outputs)
    found, wanted = (
        torch.autograd.grad(y, leaf, gradient) for y, leaf in zip(outputs, leaves, strict=True)
    )
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("num_heads", [1, 3, 8])
def test_the_mask_is_philoxs_of_seed_row_and_head(num_heads: int) -> None:
    seed = torch.tensor([2**61 + 5], device=DEVICE)
    ones = torch.ones(131, 6 * num_heads, device=DEVICE)
    heads = drop_heads(ones, num_heads, 0.4, seed).unflatten(1, (num_heads, 6))
    kept = keep_mask(seed, len(ones), num_heads, 0.4)
    wanted = torch.where(kept, 1 / (1 - 0.4), 0.0)
    assert torch.equal(heads, wanted.unsqueeze(2).expand_as(heads))


def test_the_operation_takes_the_kernel_and_draws_anew() -> None:
    x = torch.randn(65, 48, device=DEVICE)
    torch.manual_seed(5)
    first, second = (kernels.drop_heads(x, 8, 0.5) for _ in range(2))
    torch.manual_seed(5)
    seed = torch.randint(2**62, (1,), device=DEVICE)
    assert torch.equal(drop_heads(x, 8, 0.5, seed), first)
    assert not torch.equal(first, second)
