"""The fusion transformer over one token per modality, in which attention has something to attend to.

A row is [CLS], a token per string column, per group of numeric features and per category column; the transformer is the specified one (post-norm, GELU),
and [CLS] is read out. Nothing but a row's [CLS] leaves the last layer, so there only [CLS] asks, and only it goes on: the other tokens give keys and
values. That is a quarter of all products less with four layers, and the same function.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.model.fusion import JointFusionLayer, init_attention


class ModalityFusionLayer(JointFusionLayer):
    """`nn.TransformerEncoderLayer` (post-norm, GELU): the joint layer, with the queries and keys that several tokens need."""

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(width, num_heads, feedforward, dropout)
        self.query_key = nn.Linear(width, 2 * width)
        init_attention(self.query_key)

    def forward(self, x: Float[Tensor, "B M D"], num_asking: int | None = None) -> Float[Tensor, "B Q D"]:
        """Return the first `num_asking` tokens (unset: all) after attending to all M."""
        asking = x[:, :num_asking]
        weights, biases = self.query_key.weight.chunk(2), self.query_key.bias.chunk(2)
        query, key, value = F.linear(asking, weights[0], biases[0]), F.linear(x, weights[1], biases[1]), self.value(x)
        query, key, value = (rearrange(each, "b m (h d) -> b h m d", h=self.num_heads) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=self.p if self.training else 0.0)
        return self.after_attention(asking, rearrange(attended, "b h m d -> b m (h d)"))

    @torch.no_grad()
    def load_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Take over the weights of a layer of the same sizes."""
        super().load_transformer(layer)
        self.query_key.weight.copy_(layer.self_attn.in_proj_weight[: 2 * len(self.value.weight)])
        self.query_key.bias.copy_(layer.self_attn.in_proj_bias[: 2 * len(self.value.weight)])

    @torch.no_grad()
    def store_transformer(self, layer: nn.TransformerEncoderLayer) -> None:
        """Write the weights into a layer of the same sizes."""
        super().store_transformer(layer)
        layer.self_attn.in_proj_weight[: 2 * len(self.value.weight)].copy_(self.query_key.weight)
        layer.self_attn.in_proj_bias[: 2 * len(self.value.weight)].copy_(self.query_key.bias)


class ModalityFusion(nn.Module):
    """[CLS] and one token per part of the row through `nn.TransformerEncoder`, [CLS] read out, then LayerNorm."""

    def __init__(self, num_parts: int, width: int, num_heads: int, feedforward: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.kinds = nn.Parameter(torch.empty(num_parts, width).normal_(std=0.02))  # tell the tokens apart: attention knows no order
        self.layers = nn.ModuleList(ModalityFusionLayer(width, num_heads, feedforward, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, parts: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "B D"]:
        """Return [CLS] of each row after all layers; `parts` are the projected modalities."""
        tokens = [part + kind for part, kind in zip(parts, self.kinds, strict=True)]
        return self.read_out(torch.stack([self.cls.expand_as(tokens[0]), *tokens], dim=1))

    def read_out(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B D"]:
        """Return the first token after all layers."""
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.norm(self.layers[-1](x, num_asking=1).squeeze(1))

    def load_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Take over the weights of a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.load_transformer(theirs)

    def store_transformer(self, transformer: nn.TransformerEncoder) -> None:
        """Write the weights into a transformer of the same sizes."""
        for own, theirs in zip(self.layers, transformer.layers, strict=True):
            own.store_transformer(theirs)
