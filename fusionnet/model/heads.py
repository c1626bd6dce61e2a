"""Prediction heads: one small perceptron per task (specification, 4.2.6)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.encoder.dropout import Dropout
from fusionnet.config import Task
from fusionnet.model.linear import Linear


def make_head(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Return Linear and ReLU for each hidden width, and a last Linear to one number.

    Dropout follows the first.
    """
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise([width, *hidden])):
        layers += [Linear(wide, narrow), nn.ReLU()]
        if number == 0 and dropout > 0:
            layers.append(Dropout(dropout))
    return nn.Sequential(*layers, Linear(hidden[-1], 1))


class Heads(nn.ModuleDict):
    """One head per task, in the tasks' order."""

    def __init__(self, width: int, tasks: Sequence[Task]) -> None:
        super().__init__(
            {task.name: make_head(width, task.head, task.head_dropout) for task in tasks}
        )

    def forward(self, fused: Float[Tensor, "B D"]) -> Float[Tensor, "B T"]:
        """Return one number per row and task: standardised for regression, else a logit."""
        return torch.cat([head(fused) for head in self.values()], dim=1)
