"""The configuration of phase 1.

A component owns its config: this file holds what `embedcache` reads (columns, split, encoder,
cache). `fusionnet.config` holds phase 2, `fusionnet.experiment` composes both. Values are frozen
pydantic models; a YAML file states only what differs from the defaults. Every key says what it
means in its `description`.
"""

from pathlib import PurePath
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import (
    Amount,
    FilePath,
    FolderToWrite,
    Layers,
    Name,
    Seed,
    Share,
    check_order,
    twice,
)

EncodingMode = Literal["naive", "per_microbatch", "per_step", "prefix", "frozen"]
Sharding = Literal["replicate", "shard"]  # all strings on every rank, or each rank its share
CodecName = Literal["zstd", "shuffle"]
Transform = Literal["identity", "log10", "log1p", "inverse_kelvin"]
SPLITS = ("train", "validation", "test")
EncoderSize = Literal["polybert", "tiny"]  # of a stand-in: the published architecture; for tests
ENCODER_SIZES: tuple[EncoderSize, ...] = get_args(EncoderSize)
ENCODING_MODES: tuple[EncodingMode, ...] = get_args(EncodingMode)


class StringColumn(Config):
    """A text column of which few distinct values back many rows."""

    name: Name = Field(description="short name, used in the cache and in reports")
    column: str = Field(description="the table's column")
    kind: Literal["psmiles", "smiles", "text"] = Field(
        default="psmiles",
        description=(
            "what each string must be: psmiles: a repeat unit with two endpoints [*]; smiles: a"
            " molecule; text: anything"
        ),
    )
    replace: dict[Annotated[str, Field(min_length=1)], str] = Field(
        default_factory=dict,
        description="substrings replaced before anything else, e.g. '[Cu]': '[*]'",
    )
    canonicalize: bool = Field(
        default=False,
        description=(
            "write each string in RDKit's canonical form, so that spellings share one encoding"
        ),
    )
    if_null: str | None = Field(
        default=None, description="the string a null stands for; unset: a null is a violation"
    )
    encoder: "EncoderConfig | None" = Field(
        default=None, description="an encoder of its own; unset: the experiment's, shared"
    )


class NumericColumn(Config):
    """A numeric feature: its admissible range, and the transform before standardisation."""

    column: str = Field(description="the table's column, of numbers or booleans")
    unit: str = Field(default="", description="its unit, for messages and reports")
    low: Amount | None = Field(
        default=None, description="the least admissible value; unset: there is none"
    )
    high: Amount | None = Field(
        default=None, description="the greatest admissible value; unset: there is none"
    )
    transform: Transform = Field(
        default="identity",
        description=(
            "applied before standardisation; inverse_kelvin is 1000 / T, for T in degrees Celsius"
        ),
    )
    if_null: Amount | None = Field(
        default=None, description="the value a null stands for; unset: a null is a violation"
    )
    feature_group: str = Field(
        default="numeric",
        description=(
            "the group of features it belongs to: one token of fusion 'modality', one key of"
            " model.feature_noise"
        ),
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "NumericColumn":
        check_order(self.low, self.high)
        return self


class CategoryColumn(Config):
    """A categorical feature with its own embedding."""

    column: str = Field(description="the table's column, of text, integers or booleans")
    values: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="the admissible values in order; unset: those of the table, sorted",
    )

    @model_validator(mode="after")
    def _values_are_distinct(self) -> "CategoryColumn":
        if found := twice(list(self.values or ())):
            raise ValueError(f"values of '{self.column}' has twice: {', '.join(found)}")
        return self


class TargetColumn(Config):
    """A label column. Null means unobserved: the row does not count for that target."""

    name: Name = Field(description="short name, used in the cache and in reports")
    column: str = Field(description="the table's column, of numbers or booleans")
    kind: Literal["regression", "binary"] = Field(
        default="regression", description="binary: 0 or 1, of which the model predicts the chance"
    )
    unit: str = Field(default="", description="its unit, for messages and reports")
    low: Amount | None = Field(
        default=None, description="the least admissible label; unset: there is none"
    )
    high: Amount | None = Field(
        default=None, description="the greatest admissible label; unset: there is none"
    )
    optional: bool = Field(
        default=False,
        description="a table without this column is accepted; the task is then not trained",
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "TargetColumn":
        check_order(self.low, self.high)
        return self


class RowWeight(Config):
    """Rows whose `column` equals `equals` weigh `weight` in the loss, all others 1."""

    column: str = Field(description="the table's column")
    equals: str | bool | int = Field(default=True, description="the value of the weighted rows")
    weight: float = Field(
        ge=1e-6, le=1e6, description="their weight in the loss; that of all others is 1"
    )


class DataConfig(Config):
    """Which table, and what its columns mean."""

    path: FilePath | tuple[FilePath, ...] = Field(
        description=(
            "a Parquet or CSV file; or several: the first, then what was appended to it, in that"
            " order"
        )
    )
    strings: tuple[StringColumn, ...] = Field(
        min_length=1, description="text columns, which an encoder reads"
    )
    numeric: tuple[NumericColumn, ...] = Field(default=(), description="numeric features")
    categories: tuple[CategoryColumn, ...] = Field(default=(), description="categorical features")
    exclude_rows: tuple[str, ...] = Field(
        default=(),
        description="SQL conditions; rows that meet one are left out, e.g. 'length(smiles) > 500'",
    )
    group: str | None = Field(
        default=None,
        description="rows of one group (a patient, a batch, a paper) never straddle two splits",
    )
    stratum: str | None = Field(
        default=None,
        description="groups are assigned to the splits separately inside each value of this column",
    )
    row_weight: RowWeight | None = Field(
        default=None, description="which rows weigh more or less in the loss; unset: all alike"
    )
    report_by: tuple[str, ...] = Field(
        default=(), description="columns by whose values the evaluation is broken down"
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The table's files, in the order of their rows."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def title(self) -> str:
        """The names of the files, without their folders."""
        return ", ".join(PurePath(file).name for file in self.files)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "DataConfig":
        if not self.files:
            raise ValueError("path must name at least one file")
        named = (
            ("the files of path", list(self.files)),
            ("strings.name", [column.name for column in self.strings]),
            ("numeric.column", [column.column for column in self.numeric]),
            ("categories.column", [column.column for column in self.categories]),
            ("report_by", list(self.report_by)),
        )
        wrong = [
            f"{what} has twice: {', '.join(twice(names))}" for what, names in named if twice(names)
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}; take one of each away")
        return self


class SplitConfig(Config):
    """How rows are assigned to train, validation and test.

    `group`: StratifiedGroupKFold over `data.group`, inside each `data.stratum`, `folds` folds of
    which the first `train_folds` train, the next `validation_folds` validate and the rest test.
    `random`: each row is assigned for itself. `leave_strings_out`: distinct strings of one string
    column are the groups. `column`: the table says it itself, in `column`, with the values train,
    validation, test.
    """

    strategy: Literal["group", "random", "leave_strings_out", "column"] = Field(
        default="group",
        description=(
            "what decides: group: the values of data.group; random: the row itself;"
            " leave_strings_out: the distinct strings of a column; column: the table's own column"
        ),
    )
    folds: int = Field(
        default=10, ge=3, le=1000, description="equal shares that the rows are divided into"
    )
    train_folds: int = Field(default=7, ge=1, description="how many of the folds train")
    validation_folds: int = Field(
        default=2, ge=1, description="how many of the folds validate; the rest test"
    )
    stratify_by: str | None = Field(
        default=None, description="a binary target column whose rate the splits should share"
    )
    string: str | None = Field(
        default=None,
        description="leave_strings_out: the name of the string column (unset: the first)",
    )
    column: str | None = Field(default=None, description="column: the table's own split column")
    rotation: int = Field(
        default=0,
        ge=0,
        description="which fold comes first; rotating over all folds gives cross-validation",
    )
    seed: Seed = Field(default=0, description="of all random choices of the split")

    @model_validator(mode="after")
    def _folds_leave_a_test(self) -> "SplitConfig":
        if self.train_folds + self.validation_folds >= self.folds:
            raise ValueError(
                f"train_folds + validation_folds must leave a fold to test on: {self.train_folds} +"
                f" {self.validation_folds} >= {self.folds}"
            )
        if self.rotation >= self.folds:
            raise ValueError(
                f"rotation says which of the {self.folds} folds comes first, 0 to {self.folds - 1},"
                f" found {self.rotation}"
            )
        if self.strategy == "column" and self.column is None:
            raise ValueError("strategy 'column' needs split.column")
        return self


class LoraConfig(Config):
    """Low-rank adapters on the attention projections (Hu et al. 2021), through PEFT."""

    r: int = Field(default=16, ge=1, le=4096, description="rank of each adapter")
    alpha: float = Field(
        default=32.0, ge=1e-6, le=1e6, description="an adapter's output is scaled by alpha / r"
    )
    dropout: Share = Field(
        default=0.1, description="share of an adapter's inputs dropped in training"
    )
    target_modules: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("query_proj", "key_proj", "value_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )
    use_dora: bool = Field(
        default=False,
        description=(
            "weight-decomposed adapters (Liu et al. 2024): a magnitude per output beside the"
            " low-rank direction"
        ),
    )
    use_rslora: bool = Field(
        default=False,
        description="scale by alpha / sqrt(r) (Kalajdzievski 2023) instead of alpha / r",
    )
    first_layer: Layers = Field(
        default=0,
        description=(
            "adapt this layer and those above it; with encoder.mode prefix, what enters it is"
            " cached"
        ),
    )


class EncoderConfig(Config):
    """Which encoder reads the strings, how they become vectors, and how often it runs."""

    source: FilePath = Field(
        default="kuelumbus/polyBERT", description="a Hugging Face hub id or a local model folder"
    )
    revision: str | None = Field(default=None, description="pinned revision of a hub id")
    tokenizer: Literal["polybert", "any"] = Field(
        default="polybert",
        description="polybert: refuse a tokenizer that does not give the published ids",
    )
    pooling: Literal["mean", "cls"] = Field(
        default="mean",
        description="a string's vector: the mean over its tokens, or that of its first token",
    )
    mode: EncodingMode = Field(
        default="per_step",
        description=(
            "how often training encodes: naive: each row; per_microbatch and per_step: each"
            " distinct string of a micro-batch or of an optimizer step; prefix: as per_step, from"
            " cached hidden states; frozen: never, by cached vectors"
        ),
    )
    encode_sharding: Sharding = Field(
        default="replicate",
        description=(
            "per_step and prefix on several ranks: every rank encodes all strings of a step, or"
            " each its share"
        ),
    )
    memory_budget_gib: float | None = Field(
        default=None,
        ge=1e-9,
        le=1e6,
        description=(
            "activations of a step's strings; more are encoded twice. Unset: 4 on a CPU, half of a"
            " GPU's free memory"
        ),
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="what of the encoder is trained")

    @model_validator(mode="after")
    def _prefix_has_layers(self) -> "EncoderConfig":
        if self.mode == "prefix" and self.lora.first_layer == 0:
            raise ValueError(
                "mode prefix caches what enters the first adapted layer: set"
                " encoder.lora.first_layer to 1 or more, or use mode per_step"
            )
        return self

    @property
    def prefix_layer(self) -> int | None:
        """The layer whose incoming hidden states are cached, None where none are."""
        return self.lora.first_layer if self.mode == "prefix" else None

    @property
    def memory_budget_bytes(self) -> int | None:
        """The memory budget in bytes, None where it is left to the machine."""
        return None if self.memory_budget_gib is None else int(self.memory_budget_gib * 2**30)


class CacheConfig(Config):
    """Where the cache lies, and how its arrays are cut and compressed."""

    path: FolderToWrite = Field(default="cache.zarr", description="the cache's folder")
    rows_per_chunk: int = Field(
        default=65_536, ge=1, le=2**22, description="rows that are compressed, and read, together"
    )
    chunks_per_shard: int = Field(
        default=16, ge=1, le=65_536, description="chunks that share one file"
    )
    codec: CodecName = Field(
        default="zstd",
        description=(
            "shuffle: the bytes of floats by significance before zstd; 8 % fewer bytes (13.3 MB"
            " instead of 14.4 for 447,480 rows), and no more CPU time to write or to read."
            " A cache that is there keeps its codec, also when it is appended to"
        ),
    )


StringColumn.model_rebuild()
