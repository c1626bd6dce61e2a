"""An ensemble inside one network: members share all large matrices, and differ by signs and heads.

The idea is TabM's (Gorishniy, Kotelnikov, Babenko, ICLR 2025; there `TabM-mini`), which comes from
BatchEnsemble (Wen, Tran, Ba 2020). Strings are encoded, gathered and projected once for all, and
the first layers computed once. Then each of k members multiplies the features by numbers of its
own, random signs at first, so that the same matrices compute something else for each; it draws its
own dropout masks, and has heads of its own. Each is trained by its own loss, never by that of their
mean. From then on members are an axis of rows, [k B, D], member by member, and in the end one of
columns, [B, k O].

Axes: B rows, k members, D fusion width, O outputs of one member.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fusionnet.model.drawn import signs
from fusionnet.model.linear import Linear


class MemberSplit(NamedTuple):
    """How many members there are, and how many of the last layers each computes for itself."""

    num_members: int = 1
    num_own_layers: int = 0

    def scaling(self, width: int) -> "MemberScaling | None":
        """Return the factors that tell members apart, None where there is one."""
        return MemberScaling(self.num_members, width) if self.num_members > 1 else None


class MemberScaling(nn.Module):
    """Each member's own factors of the fused features, +1 or -1 at first."""

    def __init__(self, num_members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(signs(num_members, width))

    def forward(self, x: Float[Tensor, "B *M D"]) -> Float[Tensor, "kB *M D"]:
        """Return the rows of all members, one member's after the other's."""
        num_members, width = self.weight.shape
        factors = self.weight.view(num_members, *(1,) * (x.dim() - 1), width).to(x.dtype)
        return (x.unsqueeze(0) * factors).flatten(0, 1)


class MemberLinear(nn.Module):
    """`nn.Linear` with a matrix and a bias for each member."""

    def __init__(self, num_members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5  # as nn.Linear
        shape = (num_members, out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[:2]).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "kB I"]) -> Float[Tensor, "kB J"]:
        """Return each member's rows times its matrix, plus its bias."""
        rows = rearrange(x, "(k b) i -> k b i", k=len(self.weight))
        return torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT).flatten(0, 1)

    def of_member(self, member: int) -> Linear:
        """Return a copy of one member's layer, without gradients."""
        weight, bias = self.weight[member].detach(), self.bias[member].detach()
        with torch.device("meta"):
            layer = Linear(weight.shape[1], weight.shape[0])
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
        return layer


def members_as_columns(outputs: Float[Tensor, "kB O"], num_members: int) -> Float[Tensor, "B kO"]:
    """Return each row's outputs of all members side by side, member by member."""
    return rearrange(outputs, "(k b) o -> b (k o)", k=num_members)


def members_of(outputs: Float[Tensor, "B kO"], num_outputs: int) -> list[Float[Tensor, "B O"]]:
    """Return the outputs of each member apart; `num_outputs` are those of one."""
    return list(outputs.split(num_outputs, dim=1))
