"""The fusion transformer over one joint token, without the arithmetic that cannot matter (specification, 4.2.5).

The specification feeds `nn.TransformerEncoder` a sequence of length 1. Softmax over a single key is 1, so queries and keys never reach the output and get
no gradient: attention is the value projection followed by the output projection, and attention dropout, which acts on the one weight per head and row,
drops whole heads. What is left out is a third of the attention's weights and half of its products; the function is the same, and weights load both ways.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedcache.dropout import dropout
from fusionnet.model.layers import drop_heads


class JointFusionLayer(nn.Module):
    """`nn.TransformerEncoderLayer` (post-norm, GELU) on sequences of length 1."""

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.p = dropout
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)
        # nn.MultiheadAttention's initialisation: Xavier over the stacked q, k, v matrix [3 D, D], zero biases.
        nn.init.uniform_(self.value.weight, -(bound := math.sqrt(6 / (4 * width))), bound)
        nn.init.zeros_(self.value.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return attention over the single token and the feed-forward network, each with residual and norm."""
        value = self.value(x)
        if self.training and self.p > 0:
            value = drop_heads(value, self.num_heads, self.p)
        x = self.norm1(x + dropout(self.output(value), self.p, self.training))
        hidden = dropout(F.gelu(self.linear1(x)), self.p, self.training)
        return self.norm2(x + dropout(self.linear2(hidden), self.p, self.training))


class JointFusion(nn.Module):
    """`nn.TransformerEncoder` on sequences of length 1, then LayerNorm."""

    def __init__(self, width: int, num_heads: int, feedforward: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(JointFusionLayer(width, num_heads, feedforward, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the fused token of each row."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    @torch.no_grad()
    def load_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Take over the weights of a transformer of the same sizes; its queries and keys have nowhere to go."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.value.weight.copy_(_stacked(theirs.self_attn.in_proj_weight)[2])
            own.value.bias.copy_(_stacked(theirs.self_attn.in_proj_bias)[2])
            for mine, other in _pairs(own, theirs):
                mine.load_state_dict(other.state_dict())

    @torch.no_grad()
    def store_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Write the weights into a transformer of the same sizes; its queries and keys are left as they are, since they do not matter."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            _stacked(theirs.self_attn.in_proj_weight)[2].copy_(own.value.weight)
            _stacked(theirs.self_attn.in_proj_bias)[2].copy_(own.value.bias)
            for mine, other in _pairs(own, theirs):
                other.load_state_dict(mine.state_dict())


def _stacked(projection: Tensor) -> Tensor:
    """Return the stacked q, k, v projection as a view [3, D, ...]."""
    return rearrange(projection, "(three d) ... -> three d ...", three=3)


def _pairs(own: nn.Module, theirs: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    names = ("norm1", "linear1", "linear2", "norm2")
    return [(own.output, theirs.self_attn.out_proj), *((getattr(own, name), getattr(theirs, name)) for name in names)]
