"""The operations that `kernels` times: every way to compute each, and what is exact."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import fusionnet.kernels as kernels
from embedcache.encoder.dropout import dropout
from embedcache.kernels import has_kernels
from fusionnet.kernels import TaskTerm, reference

WIDTH, HIDDEN, NUM_CATEGORIES, P = 512, 384, 8, 0.1  # the sizes of configs/stage1.yaml
TERMS = (
    TaskTerm("smooth_l1", 7.0, 4.0, 0.5),
    TaskTerm("focal", gamma=2.0, pos_weight=3.17),
    *(TaskTerm("mse", 10.0, 5.0, factor=0.3, regulariser=0.3),) * 5,
)
OPERATIONS = {
    "gather_add": "string and category vectors to rows, plus a projected part and bias",
    "gather_dropout": "string vectors to rows, with dropout",
    "multitask_loss": f"{len(TERMS)} tasks: smooth-L1, focal and MSE, with gaps and row weights",
}


class Case(NamedTuple):
    """One operation at one size: the ways to compute it, what they take, the bytes they move."""

    calls: dict[str, Callable[..., Tensor]]
    inputs: list[Tensor]  # those with a gradient
    gradient: Tensor
    exact: Callable[..., Tensor]  # of the inputs in float64 and the output that is to be checked
    forward_bytes: int
    backward_bytes: int


def make_case(
    name: str, num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """Return an operation's case; random numbers are the same for the same size."""
    torch.manual_seed(num_rows + num_vectors)
    makers = {
        "gather_add": _gather_add,
        "gather_dropout": _gather_dropout,
        "multitask_loss": _multitask_loss,
    }
    case = makers[name](num_rows, num_vectors, dtype, device)
    if not has_kernels(case.gradient):
        del case.calls["kernel"]
    return case


def _gather_add(num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device) -> Case:
    vectors, categories, rows, bias, gradient = (
        torch.randn(*shape, device=device, dtype=dtype)
        for shape in (
            (num_vectors, WIDTH),
            (NUM_CATEGORIES, WIDTH),
            (num_rows, WIDTH),
            (WIDTH,),
            (num_rows, WIDTH),
        )
    )
    index, category = (
        torch.randint(num, (num_rows,), device=device) for num in (num_vectors, NUM_CATEGORIES)
    )

    def plain(vectors: Tensor, categories: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        return reference.gather_add([(vectors, index), (categories, category)], [rows], bias)

    def kernel(vectors: Tensor, categories: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        return kernels.gather_add([(vectors, index), (categories, category)], [rows], bias)

    ways = {"eager": plain, "compiled": torch.compile(plain, dynamic=False), "kernel": kernel}
    size = rows.nbytes
    return Case(
        ways,
        [vectors, categories, rows, bias],
        gradient,
        lambda out, *inputs: plain(*inputs),
        2 * size + 2 * index.nbytes,
        size + 2 * index.nbytes,
    )


def _gather_dropout(
    num_rows: int, num_vectors: int, dtype: torch.dtype, device: torch.device
) -> Case:
    hidden, gradient = (
        torch.randn(num, HIDDEN, device=device, dtype=dtype) for num in (num_vectors, num_rows)
    )
    index = torch.randint(num_vectors, (num_rows,), device=device)
    ways = {
        "eager": lambda hidden: dropout(hidden[index], P, training=True),
        "compiled": torch.compile(lambda hidden: F.dropout(hidden[index], P), dynamic=False),
        "kernel": lambda hidden: kernels.gather_dropout(hidden, index, P),
    }

    def exact(out: Tensor, hidden: Tensor) -> Tensor:
        dropped = (out == 0).double().mean().item()
        if abs(dropped - P) > 6 * math.sqrt(P * (1 - P) / out.numel()):
            raise AssertionError(f"{dropped:.4f} of the elements were dropped, not {P}")
        return hidden[index] * (out != 0) / (1 - P)

    return Case(
        ways,
        [hidden],
        gradient,
        exact,
        gradient.nbytes + index.nbytes,
        gradient.nbytes + index.nbytes,
    )


def _multitask_loss(num_rows: int, _: int, dtype: torch.dtype, device: torch.device) -> Case:
    outputs, targets = (torch.randn(num_rows, len(TERMS), device=device) for _ in range(2))
    targets = torch.where(torch.rand_like(targets) < 0.2, torch.nan, targets * 4 + 7)
    targets[:, 1] = (targets[:, 1] > 7).float()
    weight, s = (
        torch.where(torch.rand(num_rows, device=device) < 0.2, 5.0, 1.0),
        torch.randn(len(TERMS), device=device),
    )
    denominators = (weight.unsqueeze(1) * ~targets.isnan()).sum(0)

    def plain(outputs: Tensor, s: Tensor) -> Tensor:
        return reference.multitask_loss(outputs, targets, weight, denominators, s, TERMS, 1.0)[0]

    def kernel(outputs: Tensor, s: Tensor) -> Tensor:
        return kernels.multitask_loss(outputs, targets, weight, denominators, s, TERMS, 1.0)[0]

    ways = {"eager": plain, "compiled": torch.compile(plain, dynamic=False), "kernel": kernel}
    outputs = outputs.to(dtype)
    moved = outputs.nbytes + targets.nbytes + weight.nbytes
    return Case(
        ways,
        [outputs, s],
        torch.ones((), device=device),
        lambda out, *inputs: plain(*inputs),
        moved,
        outputs.nbytes,
    )
