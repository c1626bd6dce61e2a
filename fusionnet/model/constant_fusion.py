"""The layers of a fusion with constant weights: nothing is drawn, and no gradient passes.

The weights of the large products are cast and laid out once (`ConstantLinear`), where autocast
would cast them for every batch. Residuals and norms are fp32 whatever that dtype is.

Axes: B rows, D fusion width, H attention heads, M tokens of a row (with [CLS]), Q the tokens that
attend to others.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.model.constant import ConstantLinear
from fusionnet.model.modality_tokens import ModalityFusion, ModalityFusionLayer
from fusionnet.model.single_token import (
    MLPFusion,
    MLPLayer,
    SingleTokenFusion,
    SingleTokenFusionLayer,
)


class ConstantNorm(NamedTuple):
    """A layer norm in fp32."""

    weight: Float[Tensor, " D"]
    bias: Float[Tensor, " D"]
    eps: float

    @classmethod
    def of(cls, layer: nn.LayerNorm) -> "ConstantNorm":
        """Return a layer's norm as it is now."""
        return cls(layer.weight.float(), layer.bias.float(), layer.eps)

    def __call__(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Return x normalised over its last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Perceptron(NamedTuple):
    """The feed-forward network of a layer, with residual and norm."""

    linear1: ConstantLinear
    linear2: ConstantLinear
    norm: ConstantNorm

    def __call__(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        return self.norm(x + self.linear2(F.gelu(self.linear1(x))))


class _SingleTokenAttention(NamedTuple):
    """Attention over a single token, with residual (unless x contains both already) and norm."""

    linear: ConstantLinear | None
    norm: ConstantNorm

    def __call__(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.norm(x if self.linear is None else x + self.linear(x))


class _Attention(NamedTuple):
    """Attention over several tokens, with residual and norm; only the first Q tokens go on."""

    query: ConstantLinear
    key_value: ConstantLinear
    output: ConstantLinear
    norm: ConstantNorm
    num_heads: int
    num_queries: int | None  # Q; None is all M

    def __call__(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B Q D"]:
        tokens, asking = x.to(self.query.dtype), x[:, : self.num_queries]
        query = self.query(tokens[:, : self.num_queries])
        key_value = self.key_value(tokens)
        query = rearrange(query, "b q (h d) -> b h q d", h=self.num_heads)
        key, value = rearrange(key_value, "b m (two h d) -> two b h m d", two=2, h=self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.norm(asking + self.output(rearrange(attended, "b h q d -> b q (h d)")))


def constant_layers(
    fusion: SingleTokenFusion | ModalityFusion | MLPFusion, dtype: torch.dtype
) -> list[Callable[[Tensor], Tensor]]:
    """Return what the fusion's layers do, one step after the other, with products in `dtype`.

    The first attention over a single token is left out: `folded_projection` holds it.
    """
    steps: list[Callable[[Tensor], Tensor]] = []
    members = [] if fusion.members is None else [deepcopy(fusion.members).float()]
    for number, layer in enumerate(fusion.layers):
        if number == fusion.first_own:
            steps += members
        if isinstance(layer, ModalityFusionLayer):
            is_last = number == len(fusion.layers) - 1
            steps.append(_attention(layer, dtype, num_queries=1 if is_last else None))
        elif isinstance(layer, SingleTokenFusionLayer):
            matrix, offset = single_token_attention(layer)
            is_folded = number == 0 and first_is_linear(fusion)
            linear = None if is_folded else ConstantLinear(matrix.to(dtype), offset.to(dtype))
            steps.append(_SingleTokenAttention(linear, ConstantNorm.of(layer.norm1)))
        norm = layer.norm if isinstance(layer, MLPLayer) else layer.norm2
        linear1, linear2 = _linear(layer.linear1, dtype), _linear(layer.linear2, dtype)
        steps.append(_Perceptron(linear1, linear2, ConstantNorm.of(norm)))
    return steps + (members if fusion.first_own == len(fusion.layers) else [])


def folded_projection(
    projection: nn.Linear, fusion: nn.Module
) -> tuple[Float[Tensor, "D _"], Float[Tensor, " D"] | None]:
    """Return the input projection in fp32, with the fusion's first attention where it is linear.

    Attention over a single token x is A x, so with its residual it is (1 + A) W [v; p; c].
    """
    weight = projection.weight.float()
    bias = None if projection.bias is None else projection.bias.float()
    if not first_is_linear(fusion):
        return weight, bias
    matrix, offset = single_token_attention(fusion.layers[0])
    matrix += torch.eye(len(matrix), device=matrix.device)
    return matrix @ weight, matrix @ bias + offset


def first_is_linear(fusion: nn.Module) -> bool:
    """Return whether the fusion begins with a linear function that all members have in common."""
    if not (isinstance(fusion, SingleTokenFusion) and len(fusion.layers)):
        return False
    return fusion.members is None or fusion.first_own > 0


def single_token_attention(
    layer: SingleTokenFusionLayer,
) -> tuple[Float[Tensor, "D D"], Float[Tensor, " D"]]:
    """Return output projection after value projection as one matrix and one offset.

    Multiplied in float64, so that nothing is lost but the last rounding.
    """
    value, output = layer.value, layer.output
    matrix = output.weight.double() @ value.weight.double()
    offset = output.weight.double() @ value.bias.double() + output.bias.double()
    return matrix.float(), offset.float()


def _attention(
    layer: ModalityFusionLayer, dtype: torch.dtype, num_queries: int | None
) -> _Attention:
    """Return a layer's attention; keys, which have no bias, and values are one product."""
    weight = torch.cat([layer.key.weight, layer.value.weight]).to(dtype)
    bias = torch.cat([torch.zeros_like(layer.value.bias), layer.value.bias]).to(dtype)
    return _Attention(
        query=_linear(layer.query, dtype),
        key_value=ConstantLinear(weight, bias),
        output=_linear(layer.output, dtype),
        norm=ConstantNorm.of(layer.norm1),
        num_heads=layer.num_heads,
        num_queries=num_queries,
    )


def _linear(layer: nn.Linear, dtype: torch.dtype) -> ConstantLinear:
    return ConstantLinear(layer.weight.to(dtype), layer.bias.to(dtype))
