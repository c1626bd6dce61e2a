"""The gradients that a training uses, read from what it does with them.

A step is taken again exactly as training takes it (source of vectors, micro-batches, engine, ranks,
clipping, update), from the weights that it would start from, with Adam's moments at zero. AdamW's
first moment is then 1 - beta1 times the gradient that it was given: after every reduction over
ranks, unscaling and clipping, whichever engine did them, partitioned or on the host. Afterwards
weights and moments are what they were, and the run goes on with the same bits.

Clipping divides by a norm that torch sums in fp32: of Stage 1's 12 million numbers it was off by
7e-6, and every gradient with it. So the norm is judged for itself, by what such sums may be off,
and the gradients before they were divided by it.

Dropout goes the same way but drops nothing: every mask is drawn, kept and multiplied, with so small
a probability that it is all ones. So the code is that of training, rows are told apart where
dropout tells them apart, and the function is one that can be computed without any mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusionnet.config.train import OptimConfig
from fusionnet.model.adapters import NumericGroups
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable
from fusionnet.train.proof.comparison import NORM
from fusionnet.train.protocols import StepEngine, Steps

DROPS_NOTHING = 1e-12  # 1 / (1 - p) is 1 in every type but float64, and no mask has a zero
_CLIP_EPS = 1e-6  # as torch's clip_grad_norm_ and DeepSpeed add to the norm
_MOMENTS = ("exp_avg", "exp_avg_sq")


def gradients_used(
    engine: StepEngine, steps: Steps, step: int, rows: RowTable, optim: OptimConfig
) -> dict[str, Tensor]:
    """Return what AdamW is given for these rows, by name, before clipping, and the norm of it.

    Collective. Weights and moments are afterwards what they were.
    """
    state = engine.state()
    nothing = {
        moment: {name: torch.zeros(()).expand_as(value) for name, value in state[moment].items()}
        for moment in _MOMENTS
    }
    engine.load_state({**state, **nothing})
    steps.take_once(step, rows)
    moved = engine.state()["exp_avg"]
    norm = engine.gradient_norm()
    engine.load_state(state)
    factor = max(1.0, (norm + _CLIP_EPS) / optim.clip) / (1 - optim.betas[0])
    return {**{name: value * factor for name, value in moved.items()}, NORM: torch.tensor(norm)}


@contextmanager
def nothing_dropped(model: TrainableModel) -> Iterator[None]:
    """Let every dropout draw masks that drop nothing, and noise be zero, until the block ends."""
    dropping = [(module, p) for module in model.modules() if (p := _probability(module)) > 0]
    noises = [
        (each.noise, each.noise.clone())
        for each in model.modules()
        if isinstance(each, NumericGroups) and each.noise is not None
    ]
    for module, _ in dropping:
        vars(module)["p"] = DROPS_NOTHING
    for noise, _ in noises:
        noise.zero_()
    try:
        # a compiled network would be compiled again for these probabilities
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, p in dropping:
            vars(module)["p"] = p
        for noise, value in noises:
            noise.copy_(value)


def _probability(module: nn.Module) -> float:
    """Return the probability with which a module drops, 0 where it is no dropout."""
    p = vars(module).get("p", 0.0)
    return p if isinstance(p, float) else 0.0
