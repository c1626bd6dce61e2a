"""Prediction heads: one small perceptron per task (specification, 4.2.6).

In training steps on a GPU the first layers of all heads are one product of the fused rows, and one
kernel takes their ReLU and dropout, and the last layers of the heads with one hidden layer and one
output. Else they are computed head by head, and so are those of several members, whose matrices are
batched products.

Axes: B rows, D fusion width, O outputs of all tasks.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.encoder.dropout import Dropout
from fusionnet.config.tasks import Task
from fusionnet.kernels import head_ends
from fusionnet.kernels.reference import Segment
from fusionnet.model.linear import Linear, in_mixed_training, side_by_side
from fusionnet.model.members import MemberLinear, members_as_columns


def make_head(
    width: int, hidden: Sequence[int], dropout: float, num_outputs: int = 1, num_members: int = 1
) -> nn.Sequential:
    """Return Linear and ReLU for each hidden width, and a last Linear to the task's outputs.

    Dropout follows the first. Several members have matrices of their own.
    """

    def linear(wide: int, narrow: int) -> nn.Module:
        return Linear(wide, narrow) if num_members == 1 else MemberLinear(num_members, wide, narrow)

    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise([width, *hidden])):
        layers += [linear(wide, narrow), nn.ReLU()]
        if number == 0 and dropout > 0:
            layers.append(Dropout(dropout))
    return nn.Sequential(*layers, linear(hidden[-1], num_outputs))


class Heads(nn.ModuleDict):
    """One head per task, in the tasks' order; of several members each has its own."""

    def __init__(self, width: int, tasks: Sequence[Task], num_members: int = 1) -> None:
        super().__init__(
            {
                task.name: make_head(
                    width, task.head, task.head_dropout, task.num_outputs, num_members
                )
                for task in tasks
            }
        )
        self.num_members = num_members
        self.num_outputs = num_members * sum(task.num_outputs for task in tasks)

    def forward(self, fused: Float[Tensor, "_ D"]) -> Float[Tensor, "B O"]:
        """Return the outputs of all tasks side by side: standardised numbers, or logits.

        Of several members `fused` has the rows one member after the other, and the outputs have
        their columns so.
        """
        heads = list(self.values())
        if self.num_members > 1:
            outputs = torch.cat([head(fused) for head in heads], dim=1)
            return members_as_columns(outputs, self.num_members)
        if in_mixed_training(fused) and any(_ends(head) for head in heads):
            return _together(heads, fused)
        return torch.cat([head(fused) for head in heads], dim=1)

    def of_member(self, member: int) -> list[nn.Sequential]:
        """Return one member's heads; of several, copies."""
        if self.num_members == 1:
            return [head for head in self.values() if isinstance(head, nn.Sequential)]
        found = []
        for head in self.values():
            assert isinstance(head, nn.Sequential)
            layers = [x.of_member(member) if isinstance(x, MemberLinear) else x for x in head]
            found.append(nn.Sequential(*layers))
        return found


def _together(heads: Sequence[nn.Sequential], fused: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
    """Return the heads' outputs in fp32; at least one has a single hidden layer."""
    ending, deeper = ([head for head in heads if _ends(head) == ends] for ends in (True, False))
    hidden = side_by_side(fused, [_first(head) for head in (*ending, *deeper)])
    segments = [_segment(head) for head in (*ending, *deeper)]
    last = torch.cat(
        [head[-1].weight.flatten() for head in ending] + [head[-1].bias for head in ending]
    )
    outputs, active = head_ends(hidden, last, segments)
    # neighbours among the tasks stay together: each piece is a copy, and a sum in backward
    runs = [(ends, len(list(group))) for ends, group in groupby(heads, _ends)]
    of_ending = iter(_cut(outputs, [num for ends, num in runs if ends]))
    of_deeper = iter(_cut(active, [_first(head).out_features for head in deeper]))
    columns: list[Tensor] = []
    for ends, num in runs:
        if ends:
            columns.append(next(of_ending))
        else:
            columns += [_rest(head)(next(of_deeper)) for head in deeper[:num]]
            deeper = deeper[num:]
    return torch.cat(columns, dim=1)


def _cut(x: Float[Tensor, "B _"], widths: Sequence[int]) -> Sequence[Float[Tensor, "B _"]]:
    """Return the columns in parts; a single one is x itself, or its gradient would be a copy."""
    return [x] if len(widths) == 1 else x.split(widths, dim=1)


def _ends(head: nn.Sequential) -> bool:
    """Return whether the head has one hidden layer and one output: its last comes next."""
    return sum(isinstance(layer, Linear) for layer in head) == 2 and _last(head).out_features == 1


def _segment(head: nn.Sequential) -> Segment:
    dropout = head[2] if isinstance(head[2], Dropout) else None
    p = dropout.p if dropout is not None and dropout.training else 0.0
    return Segment(_first(head).out_features, p, _ends(head))


def _last(head: nn.Sequential) -> Linear:
    layer = head[-1]
    assert isinstance(layer, Linear)
    return layer


def _first(head: nn.Sequential) -> Linear:
    layer = head[0]
    assert isinstance(layer, Linear)
    return layer


def _rest(head: nn.Sequential) -> nn.Sequential:
    """Return what follows the first layer, its ReLU and dropout."""
    return nn.Sequential(*list(head)[3 if isinstance(head[2], Dropout) else 2 :])
