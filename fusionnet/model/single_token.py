"""The fusion transformer over one token (specification, 4.2.5), and an MLP to compare it with.

The specification feeds `nn.TransformerEncoder` a sequence of length 1. Softmax over a single key is
1, so queries and keys never reach the output and get no gradient: attention is the value projection
followed by the output projection, and attention dropout, which acts on the one weight per head and
row, drops whole heads. What is left out is a third of the attention's weights and half of its
products; the function is the same, and weights load both ways. The config calls it
`model.fusion: joint`.

So the specified transformer is a residual network with a linear layer between its perceptrons.
`MLPFusion` leaves that out, and has wider perceptrons.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.encoder.add_norm import LayerNorm, add_norm
from fusionnet.kernels import drop_heads, gelu_dropout
from fusionnet.model.linear import Linear
from fusionnet.model.members import MemberScaling, MemberSplit


class Stream(NamedTuple):
    """What goes from block to block, twice (`add_norm`).

    The state goes around the next block, the operand into its products.
    """

    state: Float[Tensor, "*tokens D"]
    operand: Float[Tensor, "*tokens D"]


def through(
    layers: nn.ModuleList, x: Stream, members: MemberScaling | None, first_own: int
) -> Stream:
    """Return the stream after the layers; layer `first_own` and what follows it get all members'
    rows.
    """
    for number, layer in enumerate(layers):
        x = layer(_of_members(x, members) if number == first_own else x)
    return _of_members(x, members) if first_own == len(layers) else x


def _of_members(x: Stream, members: MemberScaling | None) -> Stream:
    if members is None:
        return x
    state = members(x.state)
    return Stream(state, state.to(x.operand.dtype))  # rounded once


class SingleTokenFusionLayer(nn.Module):
    """`nn.TransformerEncoderLayer` (post-norm, GELU) on sequences of length 1."""

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.p = dropout
        self.value = Linear(width, width)
        self.output = Linear(width, width)
        self.norm1 = LayerNorm(width)
        self.linear1 = Linear(width, feedforward)
        self.linear2 = Linear(feedforward, width)
        self.norm2 = LayerNorm(width)
        init_attention(self.value)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Stream) -> Stream:
        """Return attention and the feed-forward network, each with residual and norm."""
        value = self.value(x.operand)
        if self.training and self.p > 0:
            value = drop_heads(value, self.num_heads, self.p)
        return self.after_attention(x.state, value)

    def after_attention(
        self, state: Float[Tensor, "*tokens D"], attended: Float[Tensor, "*tokens D"]
    ) -> Stream:
        """Return what follows on the attended values.

        That is output projection and feed-forward network, each with residual and norm.
        """
        p = self.p if self.training else 0.0
        state, operand = add_norm(self.norm1, self.output(attended), state, p)
        hidden = gelu_dropout(self.linear1(operand), p)
        return Stream(*add_norm(self.norm2, self.linear2(hidden), state, p))

    @torch.no_grad()
    def load_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Take over the weights of a layer of the same sizes.

        Its queries and keys have nowhere to go.
        """
        self.value.weight.copy_(query_key_value(layer.self_attn.in_proj_weight)[2])
        self.value.bias.copy_(query_key_value(layer.self_attn.in_proj_bias)[2])
        for mine, other in _pairs(self, layer):
            mine.load_state_dict(other.state_dict())

    @torch.no_grad()
    def store_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Write the weights into a layer of the same sizes.

        Its queries and keys are left as they are, since they do not matter.
        """
        query_key_value(layer.self_attn.in_proj_weight)[2].copy_(self.value.weight)
        query_key_value(layer.self_attn.in_proj_bias)[2].copy_(self.value.bias)
        for mine, other in _pairs(self, layer):
            other.load_state_dict(mine.state_dict())


class SingleTokenFusion(nn.Module):
    """`nn.TransformerEncoder` on sequences of length 1, then LayerNorm."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward: int,
        num_layers: int,
        dropout: float,
        split: MemberSplit | None = None,
    ) -> None:
        super().__init__()
        split = split or MemberSplit()
        self.members, self.first_own = split.scaling(width), num_layers - split.num_own_layers
        self.layers = nn.ModuleList(
            SingleTokenFusionLayer(width, num_heads, feedforward, dropout)
            for _ in range(num_layers)
        )
        self.norm = LayerNorm(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "kB D"]:
        """Return the fused token of each row, by member."""
        return self.norm(through(self.layers, Stream(x, x), self.members, self.first_own).state)

    def load_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Take over the weights of a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.load_transformer(theirs)

    def store_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Write the weights into a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.store_transformer(theirs)


class MLPLayer(nn.Module):
    """The feed-forward half of a transformer layer (post-norm, GELU).

    It is so wide that it has as many parameters as a `SingleTokenFusionLayer`.
    """

    def __init__(self, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.p = dropout
        hidden = mlp_hidden(width, feedforward)
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.norm = LayerNorm(width)

    def forward(self, x: Stream) -> Stream:
        """Return the perceptron's output with residual and norm."""
        p = self.p if self.training else 0.0
        hidden = gelu_dropout(self.linear1(x.operand), p)
        return Stream(*add_norm(self.norm, self.linear2(hidden), x.state, p))


class MLPFusion(nn.Module):
    """A residual MLP with as many layers and parameters as the single-token fusion."""

    def __init__(
        self,
        width: int,
        feedforward: int,
        num_layers: int,
        dropout: float,
        split: MemberSplit | None = None,
    ) -> None:
        super().__init__()
        split = split or MemberSplit()
        self.members, self.first_own = split.scaling(width), num_layers - split.num_own_layers
        self.layers = nn.ModuleList(
            MLPLayer(width, feedforward, dropout) for _ in range(num_layers)
        )
        self.norm = LayerNorm(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "kB D"]:
        """Return the fused features of each row, by member."""
        return self.norm(through(self.layers, Stream(x, x), self.members, self.first_own).state)


def init_attention(projection: nn.Linear) -> None:
    """Initialise queries, keys or values as nn.MultiheadAttention does.

    That is Xavier over the stacked matrix [3 D, D], and zero biases.
    """
    bound = math.sqrt(6 / (4 * projection.in_features))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def mlp_hidden(width: int, feedforward: int) -> int:
    """Return the hidden width at which an MLP layer has about a single-token layer's parameters.

    What attention and one norm would take goes into it.
    """
    attention, norm = 2 * width * (width + 1), 2 * width
    return feedforward + round((attention + norm) / (2 * width + 1))


def query_key_value(projection: Float[Tensor, "..."]) -> Float[Tensor, "3 ..."]:
    """Return nn.MultiheadAttention's stacked projection [3 D, ...] as a view [3, D, ...]."""
    return rearrange(projection, "(three d) ... -> three d ...", three=3)


def _pairs(
    own: SingleTokenFusionLayer, theirs: nn.TransformerEncoderLayer
) -> list[tuple[nn.Module, nn.Module]]:
    """Return the modules that both layers have, ours beside theirs."""
    names = ("norm1", "linear1", "linear2", "norm2")
    return [
        (own.output, theirs.self_attn.out_proj),
        *((getattr(own, name), getattr(theirs, name)) for name in names),
    ]
