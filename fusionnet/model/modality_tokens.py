"""The fusion transformer over one token per modality: attention has something to attend to.

A row is [CLS], a token per string column, per group of numeric features and per category column;
the transformer is the specified one (post-norm, GELU), and [CLS] is read out. Nothing but a row's
[CLS] leaves the last layer, so there only [CLS] asks, and only it goes on: the other tokens give
keys and values. That is a quarter of all products less with four layers, and the same function.

Axes: B rows, M tokens of a row (with [CLS]), Q the tokens that attend to others, D fusion width.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedcache.encoder.add_norm import LayerNorm
from fusionnet.model.drawn import normal
from fusionnet.model.members import MemberSplit
from fusionnet.model.single_token import (
    SingleTokenFusionLayer,
    Stream,
    init_attention,
    query_key_value,
    through,
)


class ModalityFusionLayer(SingleTokenFusionLayer):
    """`nn.TransformerEncoderLayer` (post-norm, GELU): the single token's, with queries and keys.

    A bias of the keys would add the same to all of a query's scores, which softmax does not see;
    its gradient would be rounding, which Adam turns into motion. So there is none.
    """

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(width, num_heads, feedforward, dropout)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        init_attention(self.query)
        init_attention(self.key)

    def forward(self, x: Stream, num_queries: int | None = None) -> Stream:
        """Return the first `num_queries` tokens (unset: all) after attending to all M."""
        asking = x.operand if num_queries is None else x.operand[:, :num_queries]
        query, key, value = (
            rearrange(each, "b m (h d) -> b h m d", h=self.num_heads)
            for each in (self.query(asking), self.key(x.operand), self.value(x.operand))
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.p if self.training else 0.0
        )
        state = x.state if num_queries is None else x.state[:, :num_queries]
        return self.after_attention(state, rearrange(attended, "b h m d -> b m (h d)"))

    @torch.no_grad()
    def load_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Take over the weights of a layer of the same sizes; its keys' bias has nowhere to go."""
        super().load_transformer(layer)
        query, key, _ = query_key_value(layer.self_attn.in_proj_weight)
        query_bias, _, _ = query_key_value(layer.self_attn.in_proj_bias)
        self.query.weight.copy_(query)
        self.query.bias.copy_(query_bias)
        self.key.weight.copy_(key)

    @torch.no_grad()
    def store_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Write the weights into a layer of the same sizes.

        Its keys' bias is left as it is, since it does not matter.
        """
        super().store_transformer(layer)
        query, key, _ = query_key_value(layer.self_attn.in_proj_weight)
        query_bias, _, _ = query_key_value(layer.self_attn.in_proj_bias)
        query.copy_(self.query.weight)
        query_bias.copy_(self.query.bias)
        key.copy_(self.key.weight)


class ModalityFusion(nn.Module):
    """[CLS] and a token per summand through `nn.TransformerEncoder`; [CLS] read out, LayerNorm."""

    def __init__(
        self,
        num_summands: int,
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
        self.cls = nn.Parameter(normal(width, std=0.02))
        # tell the tokens apart: attention knows no order
        self.kinds = nn.Parameter(normal(num_summands, width, std=0.02))
        self.layers = nn.ModuleList(
            ModalityFusionLayer(width, num_heads, feedforward, dropout) for _ in range(num_layers)
        )
        self.norm = LayerNorm(width)

    def forward(self, summands: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "kB D"]:
        """Return [CLS] of each row after all layers, by member.

        `summands` are the projected modalities.
        """
        tokens = [summand + kind for summand, kind in zip(summands, self.kinds, strict=True)]
        return self.read_out(torch.stack([self.cls.expand_as(tokens[0]), *tokens], dim=1))

    def read_out(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "kB D"]:
        """Return the first token after all layers, by member."""
        stream = through(self.layers[:-1], Stream(x, x), self.members, self.first_own)
        read = self.layers[-1](stream, num_queries=1).state.squeeze(1)
        if self.members is not None and self.first_own == len(self.layers):
            read = self.members(read)
        return self.norm(read)

    def load_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Take over the weights of a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.load_transformer(theirs)

    def store_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Write the weights into a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.store_transformer(theirs)
