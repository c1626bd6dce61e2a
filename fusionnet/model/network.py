"""The fusion network: vectors of distinct strings, numbers and categories in; one output per task
out (specification, 4.1).

The input projection W [v; p; c] is a sum W_v v + W_p p + W_c c of parts. Its string part is
computed once per distinct string where no dropout is drawn per row (evaluation), its category part
always once per category; rows gather them as late as that. One weight matrix holds all parts, as
specified. The single token is the sum of the parts; modality tokens are the parts themselves, and
their numbers are encoded group by group.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from embedcache.scaling import VectorScaling
from fusionnet.config import ModelConfig, Task
from fusionnet.kernels import gather_add
from fusionnet.model.adapters import LinearSkip, NumericEncoder, StringAdapter
from fusionnet.model.heads import Heads
from fusionnet.model.modality_tokens import ModalityFusion
from fusionnet.model.single_token import MLPFusion, SingleTokenFusion
from fusionnet.rows.tensors import RowInputs


class Part(NamedTuple):
    """A part of the input projection: on rows, or on distinct strings or categories together with
    each row's place among them.
    """

    projected: Float[Tensor, "_ D"]
    index: Int[Tensor, " B"] | None = None

    def on_rows(self) -> Float[Tensor, "B D"]:
        """Return the part of each row."""
        return self.projected if self.index is None else self.projected.index_select(0, self.index)


class FusionNetwork(nn.Module):
    """Adapters, input projection, fusion and heads."""

    feature_order: Tensor
    noise: Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[Task],
        strings: Sequence[tuple[str, int]],
        num_numeric: int,
        cardinalities: Sequence[int],
        numeric_parts: Sequence[str] = (),
        vector_scaling: Mapping[str, VectorScaling] | None = None,
    ) -> None:
        """`strings` are (name, vector width E) per string column, `cardinalities` the number of
        values per category column.

        `numeric_parts` names the group of each numeric feature, for modality tokens and noise;
        unset: they are one group, ''. `vector_scaling` standardises the vectors of a string column,
        by its name; those of others enter as they are.
        """
        super().__init__()
        scaling = (vector_scaling or {}) if config.standardize_vectors else {}
        self.adapters = nn.ModuleDict(
            {
                name: StringAdapter(
                    width,
                    config.adapter_hidden,
                    config.adapter_width,
                    config.dropout,
                    scaling.get(name),
                )
                for name, width in strings
            }
        )
        noise = [
            config.feature_noise.get(part, 0.0) for part in numeric_parts or [""] * num_numeric
        ]
        self.register_buffer("noise", torch.tensor(noise) if any(noise) else None, persistent=False)
        groups = _groups(num_numeric, numeric_parts if config.fusion == "modality" else ())
        self.register_buffer(
            "feature_order",
            torch.tensor([f for group in groups.values() for f in group], dtype=torch.int64),
            persistent=False,
        )
        self.group_sizes = {name: len(group) for name, group in groups.items()}
        self.numeric = nn.ModuleList(
            NumericEncoder(size, config.numeric_hidden, config.numeric_width, config.dropout)
            for size in self.group_sizes.values()
        )
        self.categories = nn.ModuleList(
            nn.Embedding(cardinality, config.category_width) for cardinality in cardinalities
        )
        self.part_widths = (
            [config.adapter_width] * len(strings)
            + [config.numeric_width] * len(groups)
            + [config.category_width] * len(cardinalities)
        )
        self.projection = nn.Linear(
            sum(self.part_widths), config.fusion_width, bias=config.fusion != "modality"
        )
        self.fusion = _fusion(config, len(self.part_widths))
        self.heads = Heads(config.fusion_width, tasks)
        self.linear_skip = (
            LinearSkip(num_numeric, len(tasks)) if config.linear_skip and num_numeric else None
        )

    def forward(
        self, vectors: Sequence[Float[Tensor, "_ _"]], inputs: RowInputs
    ) -> Float[Tensor, "B T"]:
        """Return one output per row and task; `vectors` has one matrix [U, E] per string column."""
        parts = self.parts(vectors, inputs)
        outputs = self.heads(
            self.fusion(
                [part.on_rows() for part in parts]
                if isinstance(self.fusion, ModalityFusion)
                else self.single_token(parts)
            )
        )
        return outputs if self.linear_skip is None else outputs + self.linear_skip(inputs.numeric)

    def single_token(self, parts: Sequence[Part]) -> Float[Tensor, "B D"]:
        """Return `projection(concat(strings, numbers, categories))` from its parts."""
        tables = [(part.projected, part.index) for part in parts if part.index is not None]
        return gather_add(
            tables, [part.projected for part in parts if part.index is None], self.projection.bias
        )

    def parts(self, vectors: Sequence[Float[Tensor, "_ _"]], inputs: RowInputs) -> list[Part]:
        """Return the parts of the input projection, without its bias, in the order strings,
        numbers, categories, each on as few rows as it allows.
        """
        dtype = self.projection.weight.dtype  # fp16 training casts the module, not its inputs
        weights = list(self.projection.weight.split(self.part_widths, dim=1))
        parts = []
        for column, (adapter, table) in enumerate(
            zip(self.adapters.values(), vectors, strict=True)
        ):
            weight, index = weights.pop(0), inputs.string_id[:, column]
            if adapter.draws_per_row:
                parts.append(Part(F.linear(adapter(table.to(dtype), index), weight)))
            else:
                parts.append(Part(F.linear(adapter.distinct(table.to(dtype)), weight), index))
        numeric = inputs.numeric
        if self.training and self.noise is not None:
            numeric = numeric + torch.randn_like(numeric) * self.noise
        for encoder, group in zip(
            self.numeric, self.numeric_groups(numeric.to(dtype)), strict=True
        ):
            parts.append(Part(F.linear(encoder(group), weights.pop(0))))
        for column, embedding in enumerate(self.categories):
            parts.append(
                Part(F.linear(embedding.weight, weights.pop(0)), inputs.category[:, column])
            )
        return parts

    def numeric_groups(self, numeric: Float[Tensor, "B F"]) -> Sequence[Float[Tensor, "B _"]]:
        """Return the features of each group."""
        return numeric.index_select(1, self.feature_order).split(
            list(self.group_sizes.values()), dim=1
        )

    def parameter_table(self) -> list[tuple[str, int, str | None]]:
        """Return (component, parameters, the specification's number) in the order of the data."""
        rows: list[tuple[str, nn.Module, str | None]] = [
            (f"string adapter {name}", adapter, "328K") for name, adapter in self.adapters.items()
        ]
        one = len(self.numeric) == 1
        rows += [
            (f"numeric encoder {name}".rstrip(), encoder, "9.4K" if one else None)
            for name, encoder in zip(self.group_sizes, self.numeric, strict=True)
        ]
        rows += [("category embedding", embedding, "128") for embedding in self.categories]
        rows += [("linear skip", self.linear_skip, None)] if self.linear_skip is not None else []
        rows += [
            ("input projection", self.projection, None),
            (_NAMES[type(self.fusion)], self.fusion, "467K"),
        ]
        specified = {"ef": "148K", "opt": "65.7K", "stress": "65.7K"}
        rows += [(f"head {name}", head, specified.get(name)) for name, head in self.heads.items()]
        return [
            (name, sum(parameter.numel() for parameter in module.parameters()), wanted)
            for name, module, wanted in rows
        ]


def _groups(num_numeric: int, parts: Sequence[str]) -> dict[str, list[int]]:
    """Return the features of each group in the order of its first feature; one group without a name
    where there are no parts.
    """
    groups: dict[str, list[int]] = {}
    for feature, part in enumerate(parts or [""] * num_numeric):
        groups.setdefault(part, []).append(feature)
    return groups


def _fusion(config: ModelConfig, num_parts: int) -> SingleTokenFusion | ModalityFusion | MLPFusion:
    """Return the fusion that the config names."""
    transformer = (
        config.fusion_width,
        config.num_heads,
        config.feedforward,
        config.num_layers,
        config.dropout,
    )
    match config.fusion:
        case "joint":
            return SingleTokenFusion(*transformer)
        case "modality":
            return ModalityFusion(num_parts, *transformer)
        case "mlp":
            return MLPFusion(
                config.fusion_width, config.feedforward, config.num_layers, config.dropout
            )


_NAMES = {
    SingleTokenFusion: "fusion transformer",
    ModalityFusion: "fusion transformer over modality tokens",
    MLPFusion: "fusion MLP",
}
