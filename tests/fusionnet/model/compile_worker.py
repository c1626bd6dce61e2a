"""Run by test_compile.py, where no shape checker is in the way of the compiler: compare the
compiled network with the plain one, and print what differs.
"""

import json
import sys
from typing import Any

import torch
from torch._dynamo.testing import CompileCounter

from embedcache.cache.reader import open_cache
from fusionnet.assemble import build_model
from fusionnet.experiment import load_experiment
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import Recipe, observed_tasks
from fusionnet.rows.tensors import RowTable, load_rows

SIZES = (33, 7, 64, 2)


def main() -> None:
    """Arguments: config, JSON list of overrides. Prints JSON: the largest relative error of outputs
    and gradients, and the number of graphs compiled.
    """
    experiment = load_experiment(sys.argv[1], json.loads(sys.argv[2]))
    cache = open_cache(experiment.cache.path)
    recipe = Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        (experiment.encoder,) * 2,
        experiment.model,
        experiment.loss,
        experiment.train,
    )
    rows = load_rows(cache, "train")
    tables = [cache.strings(spec.name).embeddings for spec in cache.layout.strings]
    plain, compiled = (
        build_model(recipe, cache.layout, cache.scaling, live=False) for _ in range(2)
    )
    compiled.network.compile(fullgraph=True, dynamic=True)
    errors = [
        relative_error(
            run(compiled.train(), tables, rows, size), run(plain.train(), tables, rows, size)
        )
        for size in SIZES
    ]
    with torch.no_grad():
        errors += [
            relative_error(
                outputs(compiled.eval(), tables, rows, size),
                outputs(plain.eval(), tables, rows, size),
            )
            for size in SIZES
        ]
    counter: Any = CompileCounter()
    counted = build_model(recipe, cache.layout, cache.scaling, live=False).train()
    counted.network.compile(fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES:
        run(counted, tables, rows, size)
    print(json.dumps({"error": max(errors), "graphs": counter.frame_count}))


def outputs(
    model: TrainableModel, tables: list[torch.Tensor], rows: RowTable, size: int
) -> list[torch.Tensor]:
    """Return the outputs of some rows alone, as evaluation asks for them."""
    return [model.outputs(tables, rows.take(torch.arange(size)).inputs)]


def run(
    model: TrainableModel, tables: list[torch.Tensor], rows: RowTable, size: int
) -> list[torch.Tensor]:
    """Return the outputs of some rows and the gradients of all weights and vectors."""
    batch = rows.take(torch.arange(size))
    leaves = [table.clone().requires_grad_() for table in tables]
    outputs = model.outputs(leaves, batch.inputs)
    return [
        outputs,
        *torch.autograd.grad(outputs.square().sum(), [*model.network.parameters(), *leaves]),
    ]


def relative_error(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the largest of |found - wanted| / |wanted| over the tensors."""
    return max(
        float((one - other).norm() / other.norm().clamp_min(1e-6))
        for one, other in zip(found, wanted, strict=True)
    )


if __name__ == "__main__":
    main()
