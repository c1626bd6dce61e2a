"""A network as it is evaluated: nothing depends on chance, so much is computed once for all rows.

The outputs are those of `FusionNetwork.forward` in evaluation mode, up to the rounding of sums in
another order:

- Each string's and category's summand of the input projection is a row of a table (`tables`); a row
  of data gathers and adds.
- Attention over a single token is linear: value and output projection are one matrix A = W_o W_v,
  half of the products. The first layer's acts on a sum, x + A x = (1 + A) W [v; p; c], so it
  disappears into the tables and the projection of the numbers.
- The first layers of all heads are one product.
- The weights of the large products are cast and laid out once (`ConstantLinear`), where autocast
  would cast them for every batch. The few small layers that read raw numbers or give the answers,
  residuals and norms are fp32 whatever that dtype is.

Nothing here waits for the device: sizes, never values, decide what runs. `torch.no_grad`, not
inference mode: rewards are to enter a policy's loss.

Axes: B rows, U distinct strings, E encoder width, D fusion width, M tokens of a row, O outputs.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.model.constant import ConstantLinear
from fusionnet.model.constant_fusion import ConstantNorm, constant_layers, folded_projection
from fusionnet.model.modality_tokens import ModalityFusion
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs

CPU_BLOCK_ROWS = 1024  # the widest activation of a block stays near the caches


class _ConstantHeads:
    """The heads of one member; their first layers are one product."""

    def __init__(self, heads: Sequence[nn.Sequential], dtype: torch.dtype) -> None:
        first_layers = [layer for head in heads if isinstance(layer := head[0], nn.Linear)]
        self._first = ConstantLinear(
            torch.cat([layer.weight for layer in first_layers]).to(dtype),
            torch.cat([layer.bias for layer in first_layers]).to(dtype),
        )
        self._widths = [layer.out_features for layer in first_layers]
        self._ends = [deepcopy(head[1:]).float() for head in heads]

    def __call__(self, fused: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
        hidden = self._first(fused).float().split(self._widths, dim=1)
        return torch.cat([end(each) for end, each in zip(self._ends, hidden, strict=True)], dim=1)


class RowEvaluator:
    """Evaluates rows by a network in evaluation mode, whose weights must not change meanwhile."""

    @torch.no_grad()
    def __init__(self, network: FusionNetwork, dtype: torch.dtype) -> None:
        """`dtype` is that of the large products."""
        assert not network.training
        self._network = network
        fusion = network.fusion
        weight, self._bias = folded_projection(network.projection, fusion)
        self._blocks = network.projection_blocks(weight)
        self._number_blocks = [
            ConstantLinear(block.to(dtype), None) for block in self._blocks.numbers
        ]
        self._has_modality_tokens = isinstance(fusion, ModalityFusion)
        if self._has_modality_tokens:
            self._cls = fusion.cls.float()
            self._kinds = network.by_kind(fusion.kinds.float().unbind())
        self._layers = constant_layers(fusion, dtype)
        self._norm = ConstantNorm.of(fusion.norm)
        members = range(network.heads.num_members)
        self._heads = [_ConstantHeads(network.heads.of_member(k), dtype) for k in members]
        self._skip = None if network.linear_skip is None else deepcopy(network.linear_skip).float()

    @torch.no_grad()
    def tables(self, vectors: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ D"]]:
        """Return the projected summands of all strings and categories.

        There is one table [U, D] per summand of strings, then one per category column; `vectors`
        has one matrix [U, E + K] per string column. For a single token they are to be summed, and
        the first of them holds the bias, which is left to the numbers where there is no table; for
        modality tokens each has its own.
        """
        network, blocks = self._network, self._blocks
        dtype = network.projection.weight.dtype
        tables = [
            F.linear(adapter.distinct(table.to(dtype)).float(), block)
            for (adapter, table, _), block in zip(
                network.string_parts(vectors), blocks.strings, strict=True
            )
        ]
        tables += [
            F.linear(embedding.weight.float(), block)
            for embedding, block in zip(network.categories, blocks.categories, strict=True)
        ]
        if not tables:
            return tables
        if not self._has_modality_tokens:
            return [tables[0] + self._bias, *tables[1:]]
        kinds = [*self._kinds.strings, *self._kinds.categories]
        return [table + kind for table, kind in zip(tables, kinds, strict=True)]

    @torch.no_grad()
    def __call__(
        self, tables: Sequence[Float[Tensor, "_ D"]], inputs: RowInputs
    ) -> Float[Tensor, "B O"]:
        """Return the heads' outputs in fp32; `tables` are those of the vectors."""
        num_rows, device = inputs.num_rows, inputs.numeric.device
        outputs = torch.empty(num_rows, self._network.heads.num_outputs, device=device)
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
    ) -> Float[Tensor, "B O"]:
        """Return the outputs of rows that are computed together."""
        of_strings = [inputs.string_id[:, column] for column in self._network.string_columns]
        columns = [*of_strings, *inputs.category.unbind(1)]
        gathered = [
            table.index_select(0, column) for table, column in zip(tables, columns, strict=True)
        ]
        encoded = self._network.numeric(inputs.numeric, self._network.numeric_embedding)
        numbers = [
            project(group) for group, project in zip(encoded, self._number_blocks, strict=True)
        ]
        if self._has_modality_tokens:
            x = self._modality_tokens(gathered, numbers)
        else:
            x = _summed(gathered, numbers, self._bias)
        for layer in self._layers:
            x = layer(x)
        x = x.squeeze(1) if x.dim() == 3 else x  # the last layer's only token
        fused = self._norm(x).unflatten(0, (len(self._heads), inputs.num_rows))  # [k, B, D]
        outputs = torch.cat(
            [heads(rows) for heads, rows in zip(self._heads, fused, strict=True)], dim=1
        )
        if self._skip is None:
            return outputs
        return outputs + self._skip(inputs.numeric).repeat(1, len(self._heads))

    def _modality_tokens(
        self, gathered: Sequence[Float[Tensor, "B D"]], numbers: Sequence[Float[Tensor, "B D"]]
    ) -> Float[Tensor, "B M D"]:
        """Return [CLS] and the tokens in the order strings, numbers, categories."""
        num_strings = len(self._network.string_columns)
        tokens = [
            *gathered[:num_strings],
            *(number + kind for number, kind in zip(numbers, self._kinds.numbers, strict=True)),
            *gathered[num_strings:],
        ]
        return torch.stack([self._cls.expand_as(tokens[0]), *tokens], dim=1)


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


def _summed(
    gathered: Sequence[Float[Tensor, "B D"]],
    numbers: Sequence[Float[Tensor, "B D"]],
    bias: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """Return the single token, whose bias the first of the gathered rows hold, if there are any.

    They are fresh, so they are added to in place.
    """
    if not gathered:
        return sum(numbers, start=bias)
    x = gathered[0]
    for summand in (*gathered[1:], *numbers):
        x += summand
    return x
