"""What a cache holds: its columns, arrays and their shapes."""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float, Float32, Int, Int8, Int16, Int32, Int64
from pydantic import Field
from torch import Tensor

from embedcache.config.columns import NumericColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.encoder.tokens import TokenTable
from embedcache.scaling import Scaling
from embedcache.schema import Config
from embedcache.table.vocabulary import Vocabulary


class FeatureSet(Config):
    """Columns of features of strings that have one origin."""

    name: str  # rdkit, morgan, or a user's file
    origin: str  # what they depend on beside the string: RDKit's version, the file's digest
    columns: tuple[str, ...]


class StringSpec(Config):
    """What the cache holds for one string column."""

    name: str
    column: str
    kind: str
    num_strings: int = Field(ge=0)
    width: int = Field(ge=0)  # 0: no encoder reads them
    num_tokens: int = Field(ge=0)
    pooling: str
    encoder: EncoderConfig
    encoding: str  # key of encoder, tokenizer and pooling: equal keys give equal vectors
    standin: bool
    # the layer that the cached hidden states enter; None: there are none
    prefix_layer: int | None = None
    features: tuple[FeatureSet, ...] = ()

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The names of the K features of each string, in the order of the array's columns."""
        return tuple(name for each in self.features for name in each.columns)

    @property
    def feature_sets(self) -> tuple[str, ...]:
        """The name of the set that each of the K features of a string is of."""
        return tuple(each.name for each in self.features for _ in each.columns)

    @property
    def in_words(self) -> str:
        """What is read of a string: by which encoder, and which features."""
        encoder = f"encoder {self.encoder.source}, {self.pooling} pooling"
        parts = [encoder if self.width else "no language model"]
        if self.features:
            sets = ", ".join(f"{each.name} {len(each.columns):,}" for each in self.features)
            parts.append(f"features {sets}")
        return "; ".join(parts)

    @property
    def full_width(self) -> int:
        """E + K: the encoder's vector, and the features behind it."""
        return self.width + len(self.feature_columns)


class Layout(Config):
    """The names of everything in the cache, in the order of the arrays' columns."""

    num_rows: int = Field(ge=0)
    strings: tuple[StringSpec, ...]
    numeric: tuple[NumericColumn, ...]
    categories: tuple[Vocabulary, ...]
    targets: tuple[TargetColumn, ...]  # those that the table has labels for
    absent_targets: tuple[str, ...]
    groups: tuple[str, ...]
    strata: tuple[str, ...]
    facets: tuple[Vocabulary, ...]
    folds: tuple[str, ...] = ()  # the table's own names of folds, where it has any
    splits: dict[str, int] = Field(
        default_factory=lambda: {name: code for code, name in enumerate(SPLITS)}
    )

    def check_scaling(self, scaling: Scaling) -> None:
        """Raise ValueError unless these are the statistics of this layout's columns."""
        wanted = {
            "features": [(column.column, column.transform) for column in self.numeric],
            "number of targets": len(self.targets),
            "binary targets": {each.name for each in self.targets if each.kind == "binary"},
            "widths of vectors": {spec.name: spec.width for spec in self.strings if spec.width},
            "features of strings": {
                spec.name: len(spec.feature_columns) for spec in self.strings if spec.features
            },
        }
        found = {
            "features": list(zip(scaling.columns, scaling.transforms, strict=True)),
            "number of targets": len(scaling.target_mean),
            "binary targets": set(scaling.positive_rate),
            "widths of vectors": {name: len(each.mean) for name, each in scaling.vectors.items()},
            "features of strings": {
                name: len(each.center) for name, each in scaling.string_features.items()
            },
        }
        for what, value in wanted.items():
            if found[what] != value:
                raise ValueError(f"{what}: the statistics are of {found[what]!r:.200}")

    def strings_of(self, name: str) -> StringSpec:
        """Return the string column with this short name; raises KeyError where there is none."""
        for spec in self.strings:
            if spec.name == name:
                return spec
        names = ", ".join(spec.name for spec in self.strings)
        raise KeyError(f"the cache has no string column '{name}'; it has {names}")


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of the table.

    C string columns, F numeric features, K categories, T targets, R facets. Numeric features are
    raw, in their own units; a NaN target is unobserved; group and stratum are -1 where the table
    has none, split where a rotation over time leaves the row out, fold where the table itself says
    its splits.
    """

    string_id: Int32[np.ndarray, "N C"]
    string_hash: Int64[np.ndarray, "N C"]  # of the row's own text (see `consistency`)
    numeric: Float32[np.ndarray, "N F"]
    category: Int32[np.ndarray, "N K"]
    targets: Float32[np.ndarray, "N T"]
    weight: Float32[np.ndarray, " N"]
    group: Int32[np.ndarray, " N"]
    stratum: Int32[np.ndarray, " N"]
    split: Int8[np.ndarray, " N"]
    fold: Int16[np.ndarray, " N"]
    facets: Int32[np.ndarray, "N R"]

    def take(self, rows: Int[np.ndarray, " n"]) -> "RowBlock":
        """Return the rows at these positions."""
        return RowBlock(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def with_targets(
        self, wanted: tuple[TargetColumn, ...], found: tuple[TargetColumn, ...]
    ) -> "RowBlock":
        """Return the same rows with the `wanted` targets: `found` ones and unobserved ones."""
        targets = np.full((len(self.weight), len(wanted)), np.nan, dtype=np.float32)
        names = [target.name for target in wanted]
        targets[:, [names.index(target.name) for target in found]] = self.targets
        return replace(self, targets=targets)


@dataclass(frozen=True)
class RowArray:
    """How one field of RowBlock is stored."""

    name: str
    dtype: str
    axis: str | None  # the name of the second dimension


ROW_ARRAYS = (
    RowArray("string_id", "int32", "string_column"),
    RowArray("string_hash", "int64", "string_column"),
    RowArray("numeric", "float32", "feature"),
    RowArray("category", "int32", "category_column"),
    RowArray("targets", "float32", "target"),
    RowArray("weight", "float32", None),
    RowArray("group", "int32", None),
    RowArray("stratum", "int32", None),
    RowArray("split", "int8", None),
    RowArray("fold", "int16", None),
    RowArray("facets", "int32", "facet"),
)


def widths(layout: Layout) -> dict[str, int]:
    """Return the number of columns of each two-dimensional row array."""
    return {
        "string_id": len(layout.strings),
        "string_hash": len(layout.strings),
        "numeric": len(layout.numeric),
        "category": len(layout.categories),
        "targets": len(layout.targets),
        "facets": len(layout.facets),
    }


def array_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array by its path; those without columns are absent."""
    width = widths(layout)
    shapes: dict[str, tuple[int, ...]] = {}
    for array in ROW_ARRAYS:
        columns = () if array.axis is None else (width[array.name],)
        if columns != (0,):
            shapes[f"rows/{array.name}"] = (layout.num_rows, *columns)
    for spec in layout.strings:
        s, p = spec.num_strings, spec.num_tokens
        names = ("text", "num_rows", "text_hash", "vector_hash")
        of_column: dict[str, tuple[int, ...]] = dict.fromkeys(names, (s,))
        if spec.width:
            of_column |= {"token_ids": (p,), "token_offsets": (s + 1,)}
            of_column["embeddings"] = (s, spec.width)
        if spec.features:
            of_column["features"] = (s, len(spec.feature_columns))
        if spec.prefix_layer is not None:
            of_column |= {"prefix": (p, spec.width), "prefix_hash": (s,)}
        shapes |= {f"strings/{spec.name}/{name}": shape for name, shape in of_column.items()}
    return shapes


@dataclass(frozen=True)
class StringTable:
    """The S distinct strings of one column."""

    text: list[str]
    tokens: TokenTable
    embeddings: Float[Tensor, "S E"]
    num_rows: Int[Tensor, " S"]
    features: Float[Tensor, "S K"]  # raw; NaN is missing
