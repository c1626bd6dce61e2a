"""LayerNorm(residual + dropout(x)): the kernel is at most twice as far from float64 as plain
PyTorch, forward and backward, and repeats bitwise.
"""

from typing import NamedTuple

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS, ON_GPU
from torch import Tensor, nn

import embedcache.encoder.add_norm as dispatch
from embedcache.kernels import add_norm as kernels
from embedcache.kernels import reference
from embedcache.kernels.reference import keep_mask
from embedcache.kernels.sum_slices import sum_slices

pytestmark = MARKS
WIDE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
SHAPES = [(0, 8), (1, 5), (7, 33), (9, 600), (65, 512), (130, 3)]
EACH_DTYPE = (9, 600) if ON_GPU else (9, 70)
# dtypes of x, residual (None: there is none), weights and state
DTYPES = [
    (BRAIN, BRAIN, WIDE, BRAIN),  # the network under autocast
    (BRAIN, WIDE, WIDE, WIDE),  # the encoder under autocast
    (WIDE, WIDE, WIDE, WIDE),
    (HALF, HALF, HALF, HALF),  # fp16 training
    (BRAIN, WIDE, WIDE, BRAIN),
    (BRAIN, None, WIDE, BRAIN),
]
CASES = [
    *((shape, DTYPES[0], 0.3) for shape in SHAPES),
    *((EACH_DTYPE, dtypes, p) for p in (0.3, 0.0) for dtypes in DTYPES),
    *(((257, 600), dtypes, 0.0) for dtypes in DTYPES if ON_GPU),
    *(((8192, 512), dtypes, 0.3) for dtypes in DTYPES if ON_GPU),
]
EPS = 1e-5


class Case(NamedTuple):
    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    gradients: tuple[Tensor, Tensor]  # of state and of operand

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *([] if self.residual is None else [self.residual]), self.weight, self.bias]


def case(shape: tuple[int, int], dtypes: tuple[torch.dtype | None, ...]) -> Case:
    generator = torch.Generator().manual_seed(shape[0])

    def draw(*size: int, dtype: torch.dtype | None) -> Tensor:
        return (torch.randn(*size, generator=generator) * 2 + 0.5).to(DEVICE, dtype)

    of_x, of_residual, of_weights, of_state = dtypes
    return Case(
        draw(*shape, dtype=of_x),
        None if of_residual is None else draw(*shape, dtype=of_residual),
        draw(shape[1], dtype=of_weights),
        draw(shape[1], dtype=of_weights),
        (draw(*shape, dtype=of_state), draw(*shape, dtype=of_x)),
    )


def outcome(given: Case, p: float, seed: Tensor | None, kernel: bool, exact: bool) -> list[Tensor]:
    """Return state, operand and the gradients of all inputs."""
    leaves = [
        leaf.detach().to(torch.float64 if exact else leaf.dtype).requires_grad_()
        for leaf in given.leaves
    ]
    x, *between, weight, bias = leaves
    residual = between[0] if between else None
    dtypes = [gradient.dtype for gradient in given.gradients]
    if kernel:
        outputs = kernels.add_norm(x, residual, weight, bias, EPS, p, seed, dtypes[0])
    else:
        y = reference.add_norm(x, residual, weight, bias, EPS, p, seed)
        outputs = (y, y) if exact else tuple(y.to(dtype) for dtype in dtypes)
    above = [g.to(out.dtype) for g, out in zip(given.gradients, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, above)]


@pytest.mark.parametrize(("shape", "dtypes", "p"), CASES, ids=str)
def test_output_and_every_gradient(
    shape: tuple[int, int], dtypes: tuple[torch.dtype | None, ...], p: float
) -> None:
    given = case(shape, dtypes)
    seed = torch.tensor([2**40 + 17], device=DEVICE) if p else None
    found, again = (outcome(given, p, seed, kernel=True, exact=False) for _ in range(2))
    plain = outcome(given, p, seed, kernel=False, exact=False)
    exact = outcome(given, p, seed, kernel=False, exact=True)
    rounding = max(
        (tensor.dtype for tensor in (*given.leaves, *given.gradients)),
        key=lambda dtype: torch.finfo(dtype).eps,
    )
    for ours, repeated, theirs, truth in zip(found, again, plain, exact, strict=True):
        assert torch.equal(ours, repeated), "not repeatable"
        assert_close(ours, theirs, truth, ours.dtype if ours is found[0] else rounding)


def test_slices_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_MAX_SLICES", 3)
    test_output_and_every_gradient((33, 512), DTYPES[0], 0.3)


@pytest.mark.parametrize("num_slices", [1, 128, 300])
def test_slices_are_added(num_slices: int) -> None:
    partial = torch.randn(num_slices, 2, 21, device=DEVICE)
    found = sum_slices(partial, WIDE).double()
    torch.testing.assert_close(found, partial.double().sum(0), rtol=1e-5, atol=1e-5)


def test_either_gradient_may_be_missing_and_both_are_added() -> None:
    given = case((7, 33), (BRAIN, WIDE, WIDE, WIDE))
    leaves = [leaf.requires_grad_() for leaf in given.leaves]
    outputs = kernels.add_norm(*leaves, EPS, 0.0, None, WIDE)
    both, first, second = (
        torch.autograd.grad(
            outputs[which], leaves, given.gradients[which], retain_graph=True, allow_unused=False
        )
        for which in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    for whole, one, other in zip(both, first, second, strict=True):
        torch.testing.assert_close(whole, one + other, atol=0.05, rtol=0.02)
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_the_outputs_share_memory_where_the_dtypes_agree(p: float) -> None:
    given = case((7, 33), DTYPES[0])
    seed = torch.tensor([3], device=DEVICE) if p else None
    x, residual = given.x.requires_grad_(), given.residual
    state, operand = kernels.add_norm(x, residual, given.weight, given.bias, EPS, p, seed, BRAIN)
    assert state.data_ptr() == operand.data_ptr()
    assert state.grad_fn is operand.grad_fn
    assert state.output_nr != operand.output_nr
    wide, narrow = kernels.add_norm(x, residual, given.weight, given.bias, EPS, p, seed, WIDE)
    assert torch.equal(wide.to(BRAIN), narrow)


def test_what_is_frozen_gets_no_gradient() -> None:
    given = case((7, 33), DTYPES[1])
    wanted = outcome(given, 0.0, None, kernel=True, exact=False)
    for moving in range(4):
        leaves = [leaf.detach() for leaf in given.leaves]
        leaves[moving].requires_grad_()
        outputs = kernels.add_norm(*leaves, EPS, 0.0, None, WIDE)
        torch.autograd.backward(outputs, list(given.gradients))
        assert torch.equal(leaves[moving].grad, wanted[2 + moving])
        assert all(leaf.grad is None for leaf in leaves if leaf is not leaves[moving])


@pytest.mark.parametrize(("num_rows", "width"), [(1, 4), (9, 70), (40, 130)])
def test_the_mask_is_philoxs_of_seed_row_and_column(num_rows: int, width: int) -> None:
    seed = torch.tensor([2**61 + 5], device=DEVICE)
    x = torch.ones(num_rows, width, device=DEVICE, requires_grad=True)
    noise = torch.randn(num_rows, width, device=DEVICE)
    weight, bias = torch.ones(width, device=DEVICE), torch.zeros(width, device=DEVICE)
    kernels.add_norm(x, noise, weight, bias, EPS, 0.4, seed, WIDE)[0].backward(noise.roll(1, 1))
    assert torch.equal(x.grad != 0, keep_mask(seed, num_rows, width, 0.4))


def test_tokens_and_rows_that_lie_apart() -> None:
    given = case((12, 33), DTYPES[1])
    tokens = given.residual.view(4, 3, 33).requires_grad_()
    asking = tokens[:, :1]
    x = given.x[:4].T.contiguous().T.unsqueeze(1)
    assert not asking.is_contiguous()
    found = kernels.add_norm(x, asking, given.weight, given.bias, EPS, 0.0, None, WIDE)
    flat = reference.add_norm(
        x[:, 0], given.residual.detach()[::3], given.weight, given.bias, EPS, 0.0, None
    )
    assert found[0].shape == (4, 1, 33)
    torch.testing.assert_close(found[0][:, 0], flat)
    gradient = given.gradients[0][:4].T.contiguous().T.unsqueeze(1)
    (of_tokens,) = torch.autograd.grad(found[0], tokens, gradient)
    assert of_tokens[:, 1:].abs().max() == 0
    assert (of_tokens[:, 0].abs().amax(1) > 0).all()


def test_an_infinite_element_that_is_dropped_does_no_harm() -> None:
    seed = torch.tensor([9], device=DEVICE)
    given = case((7, 33), DTYPES[2])
    dropped = ~keep_mask(seed, 7, 33, 0.3)
    assert dropped.any()
    spoilt = given.x.masked_fill(dropped, torch.inf)
    rest = (given.residual, given.weight, given.bias, EPS, 0.3, seed, WIDE)
    assert torch.equal(kernels.add_norm(spoilt, *rest)[0], kernels.add_norm(given.x, *rest)[0])


def test_the_operation_is_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case((65, 48), DTYPES[2])
    norm = dispatch.LayerNorm(48).to(DEVICE)
    nn.init.normal_(norm.weight)
    found, alone = dispatch.add_norm(norm, given.x, given.residual), norm(given.x)
    assert found[0] is not found[1]
    assert norm(given.x.to(BRAIN)).dtype == BRAIN
    monkeypatch.setattr(dispatch, "has_kernels", lambda x: False)
    plain = dispatch.add_norm(norm, given.x, given.residual)
    assert plain[0] is plain[1]
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(alone, nn.LayerNorm.forward(norm, given.x))


def test_the_seed_comes_from_torchs_generator() -> None:
    given, norm = case((65, 48), DTYPES[2]), nn.LayerNorm(48).to(DEVICE)
    torch.manual_seed(5)
    first, second = (dispatch.add_norm(norm, given.x, given.residual, 0.5)[0] for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(dispatch.add_norm(norm, given.x, given.residual, 0.5)[0], first)
    assert not torch.equal(first, second)
