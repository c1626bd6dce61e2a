"""The configuration of phase 1, and the base that refuses unknown keys.

A component owns its config: this file holds what `embedcache` reads (columns, split, encoder,
cache). `fusionnet.config` holds phase 2, `fusionnet.experiment` composes both. Values are frozen
pydantic models; a YAML file states only what differs from the defaults.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedcache.errors import ConfigError

EncodingMode = Literal["naive", "per_microbatch", "per_step", "prefix", "frozen"]
Sharding = Literal["replicate", "shard"]  # all strings on every rank, or each rank its share
CodecName = Literal["zstd", "shuffle"]
Transform = Literal["identity", "log10", "log1p", "inverse_kelvin"]
SPLITS = ("train", "validation", "test")
EncoderSize = Literal["polybert", "tiny"]  # of a stand-in: the published architecture; for tests
ENCODER_SIZES: tuple[EncoderSize, ...] = get_args(EncoderSize)
ENCODING_MODES: tuple[EncodingMode, ...] = get_args(EncodingMode)


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class StringColumn(Config):
    """A text column of which few distinct values back many rows."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", description="short name, used in the cache and in reports"
    )
    column: str
    kind: Literal["psmiles", "smiles", "text"] = "psmiles"
    replace: dict[str, str] = Field(
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
    """A numeric feature: its admissible range in its own unit, and the transform applied before
    standardisation.
    """

    column: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    transform: Transform = "identity"
    if_null: float | None = Field(
        default=None, description="the value a null stands for; unset: a null is a violation"
    )
    feature_group: str = Field(
        default="numeric",
        description=(
            "the group of features it belongs to: one token of fusion 'modality', one key of"
            " model.feature_noise"
        ),
    )


class CategoryColumn(Config):
    """A categorical feature with its own embedding."""

    column: str
    values: tuple[str, ...] | None = Field(
        default=None,
        description="the admissible values in order; unset: those of the table, sorted",
    )


class TargetColumn(Config):
    """A label column. Null means unobserved: the row does not count for that target."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    column: str
    kind: Literal["regression", "binary"] = "regression"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    optional: bool = Field(
        default=False,
        description="a table without this column is accepted; the task is then not trained",
    )


class RowWeight(Config):
    """Rows whose `column` equals `equals` weigh `weight` in the loss, all others 1."""

    column: str
    equals: str | bool | int = True
    weight: float = Field(gt=0)


class DataConfig(Config):
    """Which table, and what its columns mean."""

    path: str | tuple[str, ...] = Field(
        description=(
            "a Parquet or CSV file; or several: the first, then what was appended to it, in that"
            " order"
        )
    )
    strings: tuple[StringColumn, ...] = Field(min_length=1)
    numeric: tuple[NumericColumn, ...] = ()
    categories: tuple[CategoryColumn, ...] = ()
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
        description="groups are dealt to the splits separately inside each value of this column",
    )
    row_weight: RowWeight | None = None
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
        columns = (
            ("strings.name", [s.name for s in self.strings]),
            ("numeric.column", [n.column for n in self.numeric]),
        )
        for what, names in (("the files of path", list(self.files)), *columns):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} must be distinct, found twice: {', '.join(twice)}")
        return self


class SplitConfig(Config):
    """How rows are dealt to train, validation and test.

    `group`: StratifiedGroupKFold over `data.group`, inside each `data.stratum`, `folds` folds of
    which the first `train_folds` train, the next `validation_folds` validate and the rest test.
    `random`: rows are dealt independently. `leave_strings_out`: distinct strings of one string
    column are the groups. `column`: the table says it itself, in `column`, with the values train,
    validation, test.
    """

    strategy: Literal["group", "random", "leave_strings_out", "column"] = "group"
    folds: int = Field(default=10, ge=3)
    train_folds: int = Field(default=7, ge=1)
    validation_folds: int = Field(default=2, ge=1)
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
    seed: int = 0

    @model_validator(mode="after")
    def _folds_leave_a_test(self) -> "SplitConfig":
        if self.train_folds + self.validation_folds >= self.folds:
            raise ValueError(
                f"train_folds + validation_folds must leave a fold to test on: {self.train_folds} +"
                f" {self.validation_folds} >= {self.folds}"
            )
        if self.strategy == "column" and self.column is None:
            raise ValueError("strategy 'column' needs split.column")
        return self


class LoraConfig(Config):
    """Low-rank adapters on the attention projections (Hu et al. 2021), through PEFT."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("query_proj", "key_proj", "value_proj")
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
    first_layer: int = Field(
        default=0,
        ge=0,
        description=(
            "adapt this layer and those above it; with encoder.mode prefix, what enters it is"
            " cached"
        ),
    )


class EncoderConfig(Config):
    """Which encoder reads the strings, how a sequence becomes one vector, and how often it runs
    during training.
    """

    source: str = Field(
        default="kuelumbus/polyBERT", description="a Hugging Face hub id or a local model folder"
    )
    revision: str | None = Field(default=None, description="pinned revision of a hub id")
    tokenizer: Literal["polybert", "any"] = Field(
        default="polybert",
        description="polybert: refuse a tokenizer that does not give the published ids",
    )
    pooling: Literal["mean", "cls"] = "mean"
    mode: EncodingMode = "per_step"
    encode_sharding: Sharding = Field(
        default="replicate",
        description=(
            "per_step and prefix on several ranks: every rank encodes all strings of a step, or"
            " each its share"
        ),
    )
    memory_budget_gib: float | None = Field(
        default=None,
        gt=0,
        description=(
            "activations of a step's strings; more are encoded twice. Unset: 4 on a CPU, half of a"
            " GPU's free memory"
        ),
    )
    lora: LoraConfig = LoraConfig()

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

    path: str = "cache.zarr"
    rows_per_chunk: int = Field(default=65_536, ge=1)
    chunks_per_shard: int = Field(default=16, ge=1)
    codec: CodecName = Field(
        default="zstd",
        description=(
            "shuffle: the bytes of floats by significance before zstd; 8 % fewer bytes (13.3 MB"
            " instead of 14.4 for 447,480 rows), and no more CPU time to write or to read."
            " A cache that is there keeps its codec, also when it is appended to"
        ),
    )


StringColumn.model_rebuild()
ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(cls: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """Return `values` as a `cls`, or raise one ConfigError that lists every problem, naming the
    nearest known key for an unknown one.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        raise ConfigError(
            f"{origin} is not a valid configuration:\n" + "\n".join(f"  - {line}" for line in lines)
        ) from None


def _explain(cls: type[BaseModel], problem: Any) -> str:
    """Return one line on one pydantic problem."""
    path = problem["loc"]
    where = ".".join(str(step) for step in path) or "(the whole)"
    if problem["type"] != "extra_forbidden":
        return (
            f"{where}: {problem['msg'].removeprefix('Value error, ')} (got"
            f" {problem['input']!r:.80})"
        )
    known = _fields_at(cls, path[:-1])
    near = get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"
    return f"{where}: unknown key; {hint}"


def _fields_at(cls: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the config model that sits at `path` inside `cls`."""
    current: type[BaseModel] = cls
    for step in path:
        if isinstance(step, int) or step not in current.model_fields:
            continue
        models = [m for m in _models_in(current.model_fields[step].annotation)]
        if models:
            current = models[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the config models mentioned in a type annotation such as `tuple[StringColumn, ...] |
    None`.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
