"""Run by test_compile.py, where no shape checker is in the way of the compiler: compare a compiled
network with the plain one, and print what differs.

It has one of each part, since the compiler's time grows with the parts, which are alike. Evaluation
compiles nothing (`RowEvaluator`).
"""

import json
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs

SIZES = (33, 7, 64, 2)
# Inductor's C++ has another loop for fewer than 17 rows: a second compilation, 30 s of CPU, of what
# the graph is checked for without it.
INDUCTOR_SIZES = (33, 64, 257)
CONFIG = ModelConfig(
    adapter_hidden=24,
    adapter_width=16,
    numeric_hidden=12,
    numeric_width=16,
    category_width=8,
    fusion_width=32,
    num_layers=1,
    num_heads=4,
    feedforward=64,
    dropout=0.0,
)


def main() -> None:
    """Print JSON: the largest relative error of outputs and gradients, and the number of graphs."""
    plain, compiled, counted = (network() for _ in range(3))
    compiled.compile(fullgraph=True, dynamic=True)
    counter: Any = CompileCounter()
    counted.compile(fullgraph=True, dynamic=True, backend=counter)
    errors = [
        relative_error(run(model, size), run(plain, size))
        for model, sizes in ((counted, SIZES), (compiled, INDUCTOR_SIZES))
        for size in sizes
    ]
    print(json.dumps({"error": max(errors), "graphs": counter.frame_count}))


def network() -> FusionNetwork:
    """Return a network of one string column, three features, a category column and a task."""
    torch.manual_seed(0)
    task = Task(name="ef", column="ef", loss="mse", head=(16,), head_dropout=0.0)
    return FusionNetwork(CONFIG, [task], [("polymer", 20)], 3, [4]).train()


def run(model: FusionNetwork, size: int) -> list[Tensor]:
    """Return the outputs of some rows and the gradients of all weights and vectors."""
    generator = torch.Generator().manual_seed(size)
    vectors = torch.randn(7, 20, generator=generator).requires_grad_()
    inputs = RowInputs(
        torch.randint(7, (size, 1), generator=generator),
        torch.randn(size, 3, generator=generator),
        torch.randint(4, (size, 1), generator=generator),
    )
    outputs = model([vectors], inputs)
    leaves = [*model.parameters(), vectors]
    return [outputs, *torch.autograd.grad(outputs.square().sum(), leaves)]


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest of |found - wanted| / |wanted| over the tensors."""
    return max(
        float((one - other).norm() / other.norm().clamp_min(1e-6))
        for one, other in zip(found, wanted, strict=True)
    )


if __name__ == "__main__":
    main()
