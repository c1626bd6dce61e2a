"""The fusion network: strings' vectors, numbers and categories in, the outputs of all tasks out.

Behind a string's vector lie its features, if it has any; they have an adapter and a summand of
their own, and are gathered as late.

The input projection W [v; p; c] (specification, 4.1) is a sum W_v v + W_p p + W_c c. Its string
summands are computed once per distinct string where no dropout is drawn per row (evaluation), its
category summands always once per category; rows gather them as late as that. One weight matrix
holds the blocks of all summands, as specified. The single token is the sum of the summands;
modality tokens are the summands themselves, and their numbers are encoded group by group.

Axes: B rows, U distinct strings, E encoder width, F numeric features, D fusion width, O outputs of
all members, K features of a string, W the width of one summand before its projection.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from embedcache.scaling import VectorScaling
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.kernels import gather_add
from fusionnet.model.adapters import LinearSkip, NumericGroups, StringAdapter
from fusionnet.model.drawn import normal
from fusionnet.model.embeddings import numeric_embedding
from fusionnet.model.heads import Heads
from fusionnet.model.members import MemberSplit
from fusionnet.model.modality_tokens import ModalityFusion
from fusionnet.model.single_token import MLPFusion, SingleTokenFusion
from fusionnet.rows.tensors import RowInputs


class Summand(NamedTuple):
    """A summand of the input projection: one vector per row, or per distinct string or category.

    In the latter case `index` says which of them each row has.
    """

    projected: Float[Tensor, "_ D"]
    index: Int[Tensor, " B"] | None = None  # type: ignore[assignment]  # hides tuple.index

    def on_rows(self) -> Float[Tensor, "B D"]:
        """Return the summand of each row."""
        return self.projected if self.index is None else self.projected.index_select(0, self.index)


class ByKind(NamedTuple):
    """One tensor per string column, per group of numeric features and per category column."""

    strings: Sequence[Tensor]
    numbers: Sequence[Tensor]
    categories: Sequence[Tensor]


class FusionNetwork(nn.Module):
    """Adapters, input projection, fusion and heads."""

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[Task],
        strings: Sequence[tuple[str, int]],
        num_numeric: int,
        cardinalities: Sequence[int],
        feature_groups: Sequence[str] = (),
        vector_scaling: Mapping[str, VectorScaling] | None = None,
        numeric_edges: Sequence[Sequence[float]] = (),
        string_features: Mapping[str, int] | None = None,
    ) -> None:
        """`strings` are (name, vector width E) per string column.

        `cardinalities` are the numbers of values per category column; `feature_groups` names the
        group of each numeric feature, for modality tokens and noise (unset: they are one group,
        ''); `vector_scaling` standardises the vectors of a string column, by its name, and those of
        others enter as they are; `numeric_edges` are the edges of each feature's bins, for
        piecewise-linear embeddings; `string_features` are the numbers K of features that lie behind
        the vectors of a string column, [E + K].
        """
        super().__init__()
        has_modality_tokens = config.fusion == "modality"
        scaling = (vector_scaling or {}) if config.standardize_vectors else {}
        features = string_features or {}
        self._parts = [(name, width, features.get(name, 0)) for name, width in strings]
        self.adapters = nn.ModuleDict(
            {name: _adapter(config, width, scaling.get(name)) for name, width in strings if width}
        )
        self.feature_adapters = nn.ModuleDict(
            {name: _adapter(config, num, None) for name, _, num in self._parts if num}
        )
        names = feature_groups or [""] * num_numeric
        self.numeric_embedding = numeric_embedding(config, num_numeric, numeric_edges)
        has_embedding = self.numeric_embedding is not None
        self.numeric = NumericGroups(
            names if has_modality_tokens else [""] * num_numeric,
            [config.feature_noise.get(name, 0.0) for name in names],
            config.numeric_hidden,
            config.numeric_width,
            config.dropout,
            config.numeric_embedding.width if has_embedding else 1,
        )
        width = config.category_width
        self.categories = nn.ModuleList(
            nn.Embedding(each, width, _weight=normal(each, width)) for each in cardinalities
        )
        self.summand_widths = (
            [config.adapter_width] * len(self.string_columns)
            + [config.numeric_width] * len(self.numeric)
            + [config.category_width] * len(cardinalities)
        )
        self.projection = nn.Linear(
            sum(self.summand_widths), config.fusion_width, bias=not has_modality_tokens
        )
        self.fusion = _fusion(config, len(self.summand_widths))
        self.heads = Heads(config.fusion_width, tasks, config.members)
        num_outputs = sum(task.num_outputs for task in tasks)
        has_skip = config.linear_skip and num_numeric > 0
        self.linear_skip = LinearSkip(num_numeric, num_outputs) if has_skip else None

    def forward(
        self, vectors: Sequence[Float[Tensor, "_ _"]], inputs: RowInputs
    ) -> Float[Tensor, "B O"]:
        """Return the outputs of each row (see `Heads`); of k members k O, member by member.

        `vectors` has one matrix [U, E + K] per string column.
        """
        return self.of_summands(self.summands(vectors, inputs), inputs.numeric)

    def of_summands(
        self, summands: Sequence[Summand], numeric: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B O"]:
        """Return the outputs of rows whose summands are given; `numeric` is standardised."""
        if isinstance(self.fusion, ModalityFusion):
            fused = self.fusion([summand.on_rows() for summand in summands])
        else:
            fused = self.fusion(self.single_token(summands))
        outputs = self.heads(fused)
        if self.linear_skip is None:
            return outputs
        skip, num_members = self.linear_skip(numeric), self.heads.num_members
        return outputs + (skip if num_members == 1 else skip.repeat(1, num_members))

    def single_token(self, summands: Sequence[Summand]) -> Float[Tensor, "B D"]:
        """Return `projection(concat(strings, numbers, categories))` from its summands."""
        tables = [(each.projected, each.index) for each in summands if each.index is not None]
        rows = [each.projected for each in summands if each.index is None]
        return gather_add(tables, rows, self.projection.bias)

    def summands(self, vectors: Sequence[Float[Tensor, "_ _"]], inputs: RowInputs) -> list[Summand]:
        """Return the summands of the input projection, without its bias.

        They come in the order strings, numbers, categories, each on as few rows as it allows.
        """
        dtype = self.projection.weight.dtype  # fp16 training casts the module, not its inputs
        blocks = self.projection_blocks(self.projection.weight)
        strings = [
            _string_summand(adapter, table.to(dtype), inputs.string_id[:, column], block)
            for (adapter, table, column), block in zip(
                self.string_parts(vectors), blocks.strings, strict=True
            )
        ]
        numbers = self.numeric_summands(inputs.numeric)
        embeddings = zip(self.categories, inputs.category.unbind(1), blocks.categories, strict=True)
        categories = [
            Summand(F.linear(embedding.weight, block), index)
            for embedding, index, block in embeddings
        ]
        return [*strings, *numbers, *categories]

    def numeric_summands(self, numeric: Float[Tensor, "B F"]) -> list[Summand]:
        """Return the summands of each group of standardised features."""
        encoded = self.numeric(numeric, self.numeric_embedding)
        blocks = self.projection_blocks(self.projection.weight).numbers
        return [
            Summand(F.linear(group, block)) for group, block in zip(encoded, blocks, strict=True)
        ]

    @property
    def string_columns(self) -> list[int]:
        """The string column of each summand of strings: of vectors first, then of features."""
        of_vectors = [column for column, (_, width, _) in enumerate(self._parts) if width]
        return of_vectors + [column for column, (_, _, num) in enumerate(self._parts) if num]

    def string_parts(
        self, vectors: Sequence[Float[Tensor, "_ _"]]
    ) -> list[tuple[StringAdapter, Float[Tensor, "_ _"], int]]:
        """Return each adapter of strings with what it reads of its column's vectors [U, E + K]."""
        adapters: list[Any] = [*self.adapters.values(), *self.feature_adapters.values()]
        found = []
        for place, (adapter, column) in enumerate(zip(adapters, self.string_columns, strict=True)):
            width, table = self._parts[column][1], vectors[column]
            part = table[:, :width] if place < len(self.adapters) else table[:, width:]
            found.append((adapter, part, column))
        return found

    def projection_blocks(self, matrix: Float[Tensor, "D _"]) -> ByKind:
        """Return the input projection's matrix, or one of its shape, cut into a block per summand.

        A block is [D, W]; `matrix` is [D, sum of W].
        """
        return self.by_kind(matrix.split(self.summand_widths, dim=1))

    def by_kind(self, each: Sequence[Tensor]) -> ByKind:
        """Return what the summands have one each of, in their order, cut by kind."""
        num_strings, num_groups = len(self.string_columns), len(self.numeric)
        end = num_strings + num_groups
        return ByKind(each[:num_strings], each[num_strings:end], each[end:])

    def parameter_table(self) -> list[tuple[str, int]]:
        """Return (component, parameters) in the order of the data."""
        rows: list[tuple[str, nn.Module]] = [
            (f"string adapter {name}", adapter) for name, adapter in self.adapters.items()
        ]
        if self.numeric_embedding is not None:
            rows.append(("numeric embedding", self.numeric_embedding))
        rows += [
            (f"feature adapter {name}", adapter) for name, adapter in self.feature_adapters.items()
        ]
        rows += [
            (f"numeric encoder {name}".rstrip(), encoder)
            for name, encoder in zip(self.numeric.names, self.numeric, strict=True)
        ]
        rows += [("category embedding", embedding) for embedding in self.categories]
        if self.linear_skip is not None:
            rows.append(("linear skip", self.linear_skip))
        rows.append(("input projection", self.projection))
        rows.append((_NAMES[type(self.fusion)], self.fusion))
        rows += [(f"head {name}", head) for name, head in self.heads.items()]
        return [
            (name, sum(parameter.numel() for parameter in module.parameters()))
            for name, module in rows
        ]


def _string_summand(
    adapter: StringAdapter,
    vectors: Float[Tensor, "U E"],
    string_id: Int[Tensor, " B"],
    block: Float[Tensor, "D W"],
) -> Summand:
    """Return a string column's summand: on rows where dropout tells them apart, else on strings."""
    if adapter.draws_per_row:
        return Summand(F.linear(adapter(vectors, string_id), block))
    return Summand(F.linear(adapter.distinct(vectors), block), string_id)


def _adapter(config: ModelConfig, vector_width: int, scaling: VectorScaling | None) -> nn.Module:
    """Return the adapter of one string column."""
    return StringAdapter(
        vector_width, config.adapter_hidden, config.adapter_width, config.dropout, scaling
    )


def _fusion(
    config: ModelConfig, num_summands: int
) -> SingleTokenFusion | ModalityFusion | MLPFusion:
    """Return the fusion that the config names."""
    width, feedforward, dropout = config.fusion_width, config.feedforward, config.dropout
    split = MemberSplit(config.members, config.num_own_layers)
    sizes = (width, config.num_heads, feedforward, config.num_layers, dropout, split)
    match config.fusion:
        case "joint":  # the specification's word for a single token
            return SingleTokenFusion(*sizes)
        case "modality":
            return ModalityFusion(num_summands, *sizes)
        case "mlp":
            return MLPFusion(width, feedforward, config.num_layers, dropout, split)


_NAMES = {
    SingleTokenFusion: "fusion transformer",
    ModalityFusion: "fusion transformer over modality tokens",
    MLPFusion: "fusion MLP",
}
