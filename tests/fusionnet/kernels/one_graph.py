"""The operations compiled in one graph are those of eager mode, forward and backward.

The shape checks of the other tests would be in the compiler's way: test_interpreted.py, and on a
GPU test_compile.py, run this in a process without them.
"""

import pytest
import torch
from kernel_device import DEVICE, MARKS, ON_GPU
from torch import Tensor

from embedcache.kernels import has_kernels
from fusionnet.kernels import TaskTerm, gather_add, gather_dropout, multitask_loss

pytestmark = MARKS
TERMS = (TaskTerm("smooth_l1", 1.0, 2.0, 0.5), TaskTerm("focal", gamma=2.0), TaskTerm("mse"))


def step(
    vectors: Tensor,
    rows: Tensor,
    bias: Tensor,
    s: Tensor,
    index: Tensor,
    targets: Tensor,
    weight: Tensor,
    p: float,
) -> Tensor:
    """Return a loss that goes through every kernel; p = 0 leaves dropout out."""
    hidden = gather_dropout(vectors, index, p) if p else 0.0
    outputs = gather_add([(vectors, index), (vectors[:2], index % 2)], [rows], bias) + hidden
    total, sums = multitask_loss(
        outputs.tanh(), targets, weight, weight.sum() * torch.ones_like(s), s, TERMS, 0.5
    )
    return total + sums.detach().sum()


# without dropout, which is a part less, where seeds differ: see below
@pytest.mark.parametrize("p", [0.0, 0.4] if ON_GPU else [0.4])
def test_one_graph_is_eager_mode(p: float) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="inductor" if ON_GPU else "aot_eager")
    for num_rows in (33, 47):  # the second makes the number of rows symbolic
        generator = torch.Generator().manual_seed(num_rows)
        vectors, rows, bias = (
            torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()
            for shape in ((5, 3), (num_rows, 3), (3,))
        )
        s = torch.zeros(3, device=DEVICE, requires_grad=True)
        targets = (torch.rand(num_rows, 3, generator=generator) > 0.5).float().to(DEVICE)
        index = torch.randint(5, (num_rows,), generator=generator).to(DEVICE)
        weight = torch.ones(num_rows, device=DEVICE)
        assert has_kernels(vectors)
        results = []
        for call in (step, compiled):
            torch.manual_seed(0)
            total = call(vectors, rows, bias, s, index, targets, weight, p)
            results.append([total.detach(), *torch.autograd.grad(total, [vectors, rows, bias, s])])
        for eager, other in zip(*results, strict=True):
            if not (ON_GPU and p):  # inductor draws the seed from a stream of its own
                torch.testing.assert_close(other, eager)
            assert other.abs().sum() > 0
