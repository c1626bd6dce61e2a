"""A network as it is evaluated: nothing is drawn, so whatever depends on strings, categories or
weights alone is computed once, not for every row.

The outputs are those of `FusionNetwork.forward` in evaluation mode, up to the rounding of sums in
another order:

- Each string's and category's part of the input projection is a row of a table (`tables`); a row
  of data gathers and adds.
- Attention over a single token is linear: value and output projection are one matrix A = W_o W_v,
  half of the products. The first layer's acts on a sum of parts, x + A x = (1 + A) W [v; p; c], so
  it disappears into the tables and the projection of the numbers.
- The first layers of all heads are one product.
- The weights of the large products are cast and laid out once (`ConstantLinear`), where autocast
  would cast them for every batch. The few small layers that read raw numbers or give the answers,
  residuals and norms are fp32 whatever that dtype is.

Nothing here waits for the device: sizes, never values, decide what runs. `torch.no_grad`, not
inference mode: rewards are to enter a policy's loss.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.model.constant import ConstantLinear
from fusionnet.model.modality_tokens import ModalityFusion, ModalityFusionLayer
from fusionnet.model.network import FusionNetwork
from fusionnet.model.single_token import MLPLayer, SingleTokenFusion, SingleTokenFusionLayer
from fusionnet.rows.tensors import RowInputs

CPU_BLOCK_ROWS = 1024  # the widest activation of a block stays near the caches


class _Norm(NamedTuple):
    """A layer norm in fp32."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Perceptron(NamedTuple):
    """The feed-forward network of a layer, with residual and norm."""

    linear1: ConstantLinear
    linear2: ConstantLinear
    norm: _Norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.gelu(self.linear1(x))))


class _Mixing(NamedTuple):
    """Attention over a single token, with residual (unless the matrix contains it) and norm."""

    linear: ConstantLinear | None
    norm: _Norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x if self.linear is None else x + self.linear(x))


class _Attention(NamedTuple):
    """Attention over several tokens, with residual and norm; only the first `num_asking` tokens go
    on.
    """

    query: ConstantLinear
    key_value: ConstantLinear
    output: ConstantLinear
    norm: _Norm
    num_heads: int
    num_asking: int | None

    def __call__(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B Q D"]:
        tokens, asking = x.to(self.query.dtype), x[:, : self.num_asking]
        query = rearrange(
            self.query(tokens[:, : self.num_asking]), "b m (h d) -> b h m d", h=self.num_heads
        )
        key, value = rearrange(
            self.key_value(tokens), "b m (two h d) -> two b h m d", two=2, h=self.num_heads
        )
        attended = rearrange(
            F.scaled_dot_product_attention(query, key, value), "b h m d -> b m (h d)"
        )
        return self.norm(asking + self.output(attended))


class RowEvaluator:
    """Evaluates rows by a network in evaluation mode, whose weights must not change meanwhile."""

    @torch.no_grad()
    def __init__(self, network: FusionNetwork, dtype: torch.dtype) -> None:
        """`dtype` is that of the large products."""
        assert not network.training
        self._network, self._dtype = network, dtype
        fusion, projection = network.fusion, network.projection
        # [D, sum of the parts' widths], with what the first layer adds to it
        self._weight = projection.weight.float()
        self._bias = None if projection.bias is None else projection.bias.float()
        if isinstance(fusion, SingleTokenFusion) and len(fusion.layers):
            matrix, offset = _single_token_attention(fusion.layers[0])
            matrix += torch.eye(len(matrix), device=matrix.device)
            self._weight, self._bias = matrix @ self._weight, matrix @ self._bias + offset
        self._numeric_projections = [
            ConstantLinear(weight.to(dtype), None)
            for weight in self._part_weights()[len(network.adapters) :][: len(network.numeric)]
        ]
        self._steps = [step for place in range(len(fusion.layers)) for step in self._layer(place)]
        self._norm = _norm(fusion.norm)
        heads = list(network.heads.values())
        self._heads = ConstantLinear(
            *(
                torch.cat([getattr(head[0], name) for head in heads]).to(dtype)
                for name in ("weight", "bias")
            )
        )
        self._head_widths = [head[0].out_features for head in heads]
        self._head_ends = [deepcopy(head[1:]).float() for head in heads]
        self._skip = None if network.linear_skip is None else deepcopy(network.linear_skip).float()

    @torch.no_grad()
    def tables(self, vectors: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ D"]]:
        """Return the projected parts of all strings, one table per string column, and of all
        categories, one per category column.

        For a single token they are to be summed, and the first of them holds the bias; for modality
        tokens each has its own.
        """
        network, weights = self._network, self._part_weights()
        dtype = network.projection.weight.dtype
        strings = [
            adapter.distinct(table.to(dtype))
            for adapter, table in zip(network.adapters.values(), vectors, strict=True)
        ]
        columns = [*strings, *(embedding.weight for embedding in network.categories)]
        places = [*range(len(strings)), *range(len(strings) + len(network.numeric), len(weights))]
        tables = [
            F.linear(column.float(), weights[place])
            for column, place in zip(columns, places, strict=True)
        ]
        if isinstance(network.fusion, ModalityFusion):
            return [
                table + network.fusion.kinds[place].float()
                for table, place in zip(tables, places, strict=True)
            ]
        return [tables[0] + self._bias, *tables[1:]]

    @torch.no_grad()
    def __call__(
        self,
        tables: Sequence[Float[Tensor, "_ D"]],
        inputs: RowInputs,
    ) -> Float[Tensor, "B T"]:
        """Return the heads' outputs in fp32; `tables` are those of the vectors."""
        num_rows, device = inputs.num_rows, inputs.numeric.device
        outputs = torch.empty(num_rows, len(self._head_ends), device=device)
        on_cpu = device.type == "cpu"
        block_rows = CPU_BLOCK_ROWS if on_cpu else max(1, num_rows)
        for start in range(0, num_rows, block_rows):
            rows = slice(start, start + block_rows)
            block = inputs.take(rows)
            padded = _padded(block) if on_cpu else block
            outputs[rows] = self._block(tables, padded)[: block.num_rows]
        return outputs

    def _block(
        self, tables: Sequence[Float[Tensor, "_ D"]], inputs: RowInputs
    ) -> Float[Tensor, "B T"]:
        """Return the outputs of rows that are computed together."""
        network = self._network
        columns = [*inputs.string_id.unbind(1), *inputs.category.unbind(1)]
        gathered = [
            table.index_select(0, column) for table, column in zip(tables, columns, strict=True)
        ]
        groups = network.numeric_groups(inputs.numeric.to(network.projection.weight.dtype))
        numbers = [
            project(encoder(group))
            for encoder, group, project in zip(
                network.numeric, groups, self._numeric_projections, strict=True
            )
        ]
        x = (
            self._modality_tokens(gathered, numbers)
            if isinstance(network.fusion, ModalityFusion)
            else _summed(gathered, numbers)
        )
        for step in self._steps:
            x = step(x)
        x = x.squeeze(1) if x.dim() == 3 else x  # the last layer's only token
        hidden = self._heads(self._norm(x)).float().split(self._head_widths, dim=1)
        outputs = torch.cat(
            [end(part) for end, part in zip(self._head_ends, hidden, strict=True)], dim=1
        )
        return outputs if self._skip is None else outputs + self._skip(inputs.numeric)

    def _modality_tokens(
        self, gathered: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> Float[Tensor, "B M D"]:
        """Return [CLS] and the tokens in the order strings, numbers, categories."""
        fusion, num_strings = self._network.fusion, len(self._network.adapters)
        kinds = fusion.kinds[num_strings:].float()
        tokens = [
            *gathered[:num_strings],
            *(number + kind for number, kind in zip(numbers, kinds, strict=False)),
            *gathered[num_strings:],
        ]
        return torch.stack([fusion.cls.float().expand_as(tokens[0]), *tokens], dim=1)

    def _part_weights(self) -> list[Float[Tensor, "D _"]]:
        return list(self._weight.split(self._network.part_widths, dim=1))

    def _layer(self, place: int) -> Iterator[_Mixing | _Attention | _Perceptron]:
        """Yield what one layer of the fusion does, one step after the other."""
        fusion, dtype = self._network.fusion, self._dtype
        layer = fusion.layers[place]
        linears = (_linear(layer.linear1, dtype), _linear(layer.linear2, dtype))
        if isinstance(layer, MLPLayer):
            yield _Perceptron(*linears, _norm(layer.norm))
            return
        if isinstance(layer, ModalityFusionLayer):
            no_bias = torch.zeros_like(layer.value.bias)
            both = [
                torch.cat(pair).to(dtype)
                for pair in ((layer.key.weight, layer.value.weight), (no_bias, layer.value.bias))
            ]
            asking = 1 if place == len(fusion.layers) - 1 else None
            yield _Attention(
                _linear(layer.query, dtype),
                ConstantLinear(*both),
                _linear(layer.output, dtype),
                _norm(layer.norm1),
                layer.num_heads,
                asking,
            )
        else:
            matrix, offset = _single_token_attention(layer)
            yield _Mixing(
                None if place == 0 else ConstantLinear(matrix.to(dtype), offset.to(dtype)),
                _norm(layer.norm1),
            )
        yield _Perceptron(*linears, _norm(layer.norm2))


def _padded(rows: RowInputs) -> RowInputs:
    """Return the rows and some more of zeros, up to a power of two or a multiple of 128.

    Products then have few sizes: code is generated, and kept, for each (`constant`).
    """
    num_rows = rows.num_rows
    rounded = min(1 << (num_rows - 1).bit_length(), -(-num_rows // 128) * 128)
    below = (0, 0, 0, rounded - num_rows)
    return RowInputs(
        F.pad(rows.string_id, below), F.pad(rows.numeric, below), F.pad(rows.category, below)
    )


def _single_token_attention(
    layer: SingleTokenFusionLayer,
) -> tuple[Float[Tensor, "D D"], Float[Tensor, " D"]]:
    """Return output projection after value projection as one matrix and one offset; multiplied in
    float64, so that nothing is lost but the last rounding.
    """
    value, output = layer.value, layer.output
    matrix = output.weight.double() @ value.weight.double()
    offset = output.weight.double() @ value.bias.double() + output.bias.double()
    return matrix.float(), offset.float()


def _summed(gathered: Sequence[Tensor], numbers: Sequence[Tensor]) -> Float[Tensor, "B D"]:
    """Return the single token; the gathered rows are fresh, so they are added to in place."""
    x = gathered[0]
    for part in (*gathered[1:], *numbers):
        x += part
    return x


def _linear(layer: nn.Linear, dtype: torch.dtype) -> ConstantLinear:
    return ConstantLinear(layer.weight.to(dtype), layer.bias.to(dtype))


def _norm(layer: nn.LayerNorm) -> _Norm:
    return _Norm(layer.weight.float(), layer.bias.float(), layer.eps)
