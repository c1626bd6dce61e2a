"""Which table, and what its columns mean."""

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.config.encoder import EncoderConfig
from embedcache.schema import Config, also_called
from embedcache.values import (
    Amount,
    FilePath,
    Name,
    check_order,
    twice,
)

Transform = Literal["identity", "log10", "log1p", "inverse_kelvin"]
TargetTransform = Literal["identity", "log10", "log1p"]


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
    transform: TargetTransform = Field(
        default="identity",
        description=(
            "of a regression target, applied before it is learnt and undone in predictions: log10"
            " where labels span decades"
        ),
    )
    optional: bool = Field(
        default=False,
        description="a table without this column is accepted; the task is then not trained",
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "TargetColumn":
        check_order(self.low, self.high)
        return self

    @model_validator(mode="after")
    def _transform_fits_the_kind(self) -> "TargetColumn":
        if self.kind == "binary" and self.transform != "identity":
            raise ValueError(
                f"'{self.name}' is binary, so its transform must be identity, not {self.transform}"
            )
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
    numeric: tuple[NumericColumn, ...] = Field(
        default=(),
        description="numeric features",
        json_schema_extra=also_called("features"),
    )
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
