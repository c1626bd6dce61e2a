"""LoRA beside frozen projections is at most twice as far from float64 as the plain formula, forward
and backward, its masks are Philox's, and results repeat bitwise.
"""

from collections.abc import Callable

import pytest
import torch
from kernel_device import DEVICE, MARKS
from torch import Tensor
from torch.nn import functional as F

from embedcache.kernels.lora import adapted
from embedcache.kernels.reference import keep_mask

pytestmark = MARKS
# (K, projections, width_in, width_out, r)
SHAPES = [(1, 1, 65, 70, 2), (7, 2, 33, 24, 4), (17, 3, 150, 140, 16), (130, 3, 24, 24, 5)]
FP32, BF16 = torch.float32, torch.bfloat16
# the types of x and of the products, and p
CASES = [
    *((shape, FP32, FP32, 0.1) for shape in SHAPES),
    (SHAPES[0], FP32, BF16, 0.1),
    (SHAPES[1], BF16, BF16, 0.0),
    (SHAPES[2], FP32, BF16, 0.1),
    (SHAPES[3], BF16, BF16, 0.3),
]
Shape = tuple[int, int, int, int, int]


def case(shape: Shape, compute: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return [x, A_0, B_0, ..], which get gradients, the frozen weight and bias, and a gradient."""
    num_tokens, num, width_in, width_out, rank = shape
    generator = torch.Generator().manual_seed(num_tokens)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE)

    inputs = [random(num_tokens, width_in)]
    for _ in range(num):
        inputs += [random(rank, width_in), random(width_out, rank)]
    frozen = [random(num * width_out, width_in).to(compute), random(num * width_out).to(compute)]
    return inputs, frozen, random(num_tokens, num * width_out)


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, scale: float, p: float, *matrices: Tensor
) -> Tensor:
    """Return what `adapted` does, the masks of all projections one under another."""
    cast, num = x.to(weight.dtype), len(matrices) // 2
    seed = torch.randint(2**62, (1,), device=x.device)
    kept = keep_mask(seed, num * len(x), x.shape[1], p).view(num, *x.shape)
    added = []
    for mask, a, b in zip(kept, matrices[::2], matrices[1::2], strict=True):
        low = torch.where(mask, cast, 0) @ a.to(cast.dtype).t()
        added.append(scale / (1 - p) * (low @ b.to(cast.dtype).t()))
    return F.linear(cast, weight, bias) + torch.cat(added, dim=1)


def outcome(
    call: Callable[..., Tensor],
    inputs: list[Tensor],
    frozen: list[Tensor],
    gradient: Tensor,
    p: float,
) -> list[Tensor]:
    """Return the output and the gradients of x and of each matrix, always of one seed."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    torch.manual_seed(3)
    y = call(leaves[0], *frozen, 0.7, p, *leaves[1:])
    return [y, *torch.autograd.grad(y, leaves, gradient.to(y.dtype))]


@pytest.mark.parametrize(("shape", "dtype", "compute", "p"), CASES, ids=str)
def test_lora(shape: Shape, dtype: torch.dtype, compute: torch.dtype, p: float) -> None:
    inputs, frozen, gradient = case(shape, compute)
    inputs[0] = inputs[0].to(dtype)
    gradient = gradient.to(compute)
    wide = [[tensor.double() for tensor in each] for each in (inputs, frozen)]
    results = [
        outcome(call, *tensors, gradient, p)
        for call, tensors in (
            (adapted, (inputs, frozen)),
            (adapted, (inputs, frozen)),
            (plain, (inputs, frozen)),
            (plain, wide),
        )
    ]
    for found, again, wanted, exact in zip(*results, strict=True):
        assert torch.equal(found, again), "not repeatable"
        assert found.dtype == wanted.dtype
        assert found.shape == exact.shape
        # plain may be lucky on one row: 0.7 half places where two roundings in a row give 2.3
        last_place = torch.finfo(compute).eps * exact.norm()
        error = (found.double() - exact).norm()
        assert error <= 2 * max((wanted.double() - exact).norm(), last_place), f"{error:.2e}"
        assert error < 0.1 * exact.norm(), "zeros would pass"


def test_the_input_may_have_no_gradient_and_neither_need_be_contiguous() -> None:
    inputs, frozen, gradient = case((7, 2, 33, 24, 4), torch.float32)
    wanted = outcome(adapted, inputs, frozen, gradient, 0.1)
    x = inputs[0].T.contiguous().T
    assert not x.is_contiguous()
    leaves = [tensor.requires_grad_() for tensor in inputs[1:]]
    torch.manual_seed(3)
    y = adapted(x, *frozen, 0.7, 0.1, *leaves)
    found = [y, *torch.autograd.grad(y, leaves, gradient.T.contiguous().T)]
    for one, other in zip(found, [wanted[0], *wanted[2:]], strict=True):
        assert torch.equal(one, other)


def test_masks_differ_between_projections_and_calls_and_the_gradient_goes_through_them() -> None:
    num_tokens, width, p = 100, 24, 0.25
    x = (torch.rand(num_tokens, width, device=DEVICE) + 1).requires_grad_()
    nothing = torch.zeros(3 * width, width, device=DEVICE)
    # A and B the identity, the projections zero: what comes out is the dropped input
    matrices = [torch.eye(width, device=DEVICE)] * 6
    first, second = (adapted(x, nothing, nothing[:, 0], 1.0, p, *matrices) for _ in range(2))
    kept = [part != 0 for y in (first, second) for part in y.chunk(3, dim=1)]
    for part, keep in zip(first.chunk(3, dim=1), kept, strict=False):
        torch.testing.assert_close(part[keep], (x / (1 - p))[keep])
        assert abs(float(keep.float().mean()) - 0.75) < 0.05
    for number, one in enumerate(kept):
        for other in kept[:number]:  # independent
            assert abs(float((one & other).float().mean()) - 0.75**2) < 0.05
    (gradient,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(gradient, sum(keep.float() for keep in kept[:3]) / (1 - p))
