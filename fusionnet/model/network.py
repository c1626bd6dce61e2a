"""The fusion network: vectors of distinct strings, numbers and categories in; one output per task out (specification, 4.1).

The input projection W [v; p; c] is a sum W_v v + W_p p + W_c c. Its string part is computed once per distinct string where no dropout is drawn per row
(evaluation), its category part always once per category; both are then gathered and added. One weight matrix holds all parts, as specified.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.config import ModelConfig, Task
from fusionnet.kernels import gather_add
from fusionnet.model.fusion import JointFusion
from fusionnet.model.heads import Heads
from fusionnet.model.layers import NumericEncoder, StringAdapter


class FusionNetwork(nn.Module):
    """Adapters, input projection, fusion transformer and heads."""

    def __init__(self, config: ModelConfig, tasks: Sequence[Task], strings: Sequence[tuple[str, int]], num_numeric: int, cardinalities: Sequence[int]) -> None:
        """`strings` are (name, vector width E) per string column, `cardinalities` the number of values per category column."""
        super().__init__()
        self.adapters = nn.ModuleDict({name: StringAdapter(width, config.adapter_hidden, config.adapter_width, config.dropout) for name, width in strings})
        self.numeric = NumericEncoder(num_numeric, config.numeric_hidden, config.numeric_width, config.dropout) if num_numeric else None
        self.categories = nn.ModuleList(nn.Embedding(cardinality, config.category_width) for cardinality in cardinalities)
        self.part_widths = [config.adapter_width] * len(strings) + [config.numeric_width] * bool(num_numeric) + [config.category_width] * len(cardinalities)
        self.projection = nn.Linear(sum(self.part_widths), config.fusion_width)
        self.fusion = JointFusion(config.fusion_width, config.num_heads, config.feedforward, config.num_layers, config.dropout)
        self.heads = Heads(config.fusion_width, tasks)

    def forward(
        self, vectors: Sequence[Float[Tensor, "_ _"]], string_id: Int[Tensor, "B C"], numeric: Float[Tensor, "B F"], category: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B T"]:
        """Return one output per row and task; `string_id[:, c]` indexes `vectors[c]`, `numeric` is standardised."""
        return self.heads(self.fusion(self.project(vectors, string_id, numeric, category)))

    def project(
        self, vectors: Sequence[Float[Tensor, "_ _"]], string_id: Int[Tensor, "B C"], numeric: Float[Tensor, "B F"], category: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B D"]:
        """Return the joint token: `projection(concat(strings, numbers, categories))`, each part computed on as few rows as it allows."""
        dtype = self.projection.weight.dtype  # fp16 training casts the module, not its inputs
        weights = list(self.projection.weight.split(self.part_widths, dim=1))
        tables, rows = [], []  # one vector per distinct value and its place in each row; parts that differ from row to row
        for column, (adapter, table) in enumerate(zip(self.adapters.values(), vectors, strict=True)):
            weight, index = weights.pop(0), string_id[:, column]
            if adapter.draws_per_row:
                rows.append(F.linear(adapter(table.to(dtype), index), weight))
            else:
                tables.append((F.linear(adapter.distinct(table.to(dtype)), weight), index))
        if self.numeric is not None:
            rows.append(F.linear(self.numeric(numeric.to(dtype)), weights.pop(0)))
        for column, embedding in enumerate(self.categories):
            tables.append((F.linear(embedding.weight, weights.pop(0)), category[:, column]))
        return gather_add(tables, rows, self.projection.bias)

    def parameter_table(self) -> list[tuple[str, int, str | None]]:
        """Return (component, parameters, the specification's number) in the order of the data."""
        rows: list[tuple[str, nn.Module, str | None]] = [(f"string adapter {name}", adapter, "328K") for name, adapter in self.adapters.items()]
        rows += [("numeric encoder", self.numeric, "9.4K")] if self.numeric is not None else []
        rows += [("category embedding", embedding, "128") for embedding in self.categories]
        rows += [("input projection", self.projection, None), ("fusion transformer", self.fusion, "467K")]
        specified = {"ef": "148K", "opt": "65.7K", "stress": "65.7K"}
        rows += [(f"head {name}", head, specified.get(name)) for name, head in self.heads.items()]
        return [(name, sum(parameter.numel() for parameter in module.parameters()), wanted) for name, module, wanted in rows]
