"""What single columns of a table mean: strings, numbers, categories, weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.config.encoder import EncoderConfig
from embedcache.config.features import FeatureKind, FeatureTable
from embedcache.schema import Config
from embedcache.values import (
    Amount,
    Count,
    Name,
    Spelled,
    check_order,
    twice,
)

Transform = Literal["identity", "log10", "log1p", "inverse_kelvin", "quantile"]
Fill = Literal["mean", "median", "indicator"]  # of a missing number, from the train rows


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
    canonicalize: bool | Literal["polymer"] = Field(
        default=False,
        description=(
            "write each string in one form, so that spellings share one encoding: true: RDKit's"
            " canonical SMILES, for any order of the atoms; polymer: also any cut, direction or"
            " multiple of the repeat unit of one chain"
        ),
    )
    fragments: bool = Field(
        default=False,
        description=(
            "a psmiles may have several parts, joined by '.': repeat units, of which each is"
            " checked, and salts; for an encoder that reads '.', which polyBERT does not"
        ),
    )
    if_null: str | None = Field(
        default=None, description="the string a null stands for; unset: a null is a violation"
    )
    encoder: "EncoderConfig | None" = Field(
        default=None, description="an encoder of its own; unset: the experiment's, shared"
    )
    features: tuple[FeatureKind | FeatureTable, ...] = Field(
        default=(),
        description=(
            "numbers on each string, beside what the encoder makes of it: rdkit: RDKit's 2D"
            " descriptors; morgan: counts of Morgan's fingerprints; of a psmiles both are of the"
            " repeat unit and of two units in a row. {table: FILE, key: COLUMN}: your own"
        ),
    )

    @property
    def computed_features(self) -> tuple[FeatureKind, ...]:
        """Those of `features` that need nothing but the string."""
        return tuple(each for each in self.features if not isinstance(each, FeatureTable))

    @model_validator(mode="after")
    def _features_fit(self) -> "StringColumn":
        named = [
            f"{each.table} by {each.key}" if isinstance(each, FeatureTable) else each
            for each in self.features
        ]
        if found := twice(named):
            raise ValueError(f"features has twice: {', '.join(found)}; take one away")
        if self.kind == "text" and self.computed_features:
            raise ValueError(
                f"features {', '.join(self.computed_features)} are of molecules, and kind: text may"
                " be anything; set kind to psmiles or smiles, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "StringColumn":
        if self.kind != "psmiles" and self.canonicalize == "polymer":
            raise ValueError("canonicalize: polymer is for kind psmiles; set it to true or false")
        if self.kind != "psmiles" and self.fragments:
            raise ValueError("fragments is for kind psmiles, others may have any; leave it out")
        return self


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
            "applied before standardisation; inverse_kelvin is 1000 / T, for T in degrees Celsius;"
            " quantile: the normal score of the value's rank among the train rows, for skewed or"
            " clumped features and far-off values; beyond the train rows it is that of their least"
            " or greatest"
        ),
    )
    if_null: Amount | Fill | None = Field(
        default=None,
        description=(
            "what a missing value (null, NaN) stands for: a number; mean or median: that of the"
            " train rows that have one; indicator: the median, and one more feature that is 1 where"
            " it was missing; unset: it is a violation"
        ),
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

    @property
    def fill(self) -> Fill | None:
        """How a missing value is filled from the train rows; None where it is not."""
        return self.if_null if isinstance(self.if_null, str) else None


def indicator_of(column: NumericColumn) -> NumericColumn:
    """Return the feature that is 1 where a numeric column has no value, else 0."""
    return NumericColumn(
        column=f"{column.column} is missing",
        low=0,
        high=1,
        if_null=0,
        feature_group=column.feature_group,
    )


class CategoryColumn(Config):
    """A categorical feature with its own embedding."""

    column: str = Field(description="the table's column, of text, numbers or booleans")
    values: tuple[Spelled, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "the admissible values in order; unset: those of the table, sorted. Numbers and truths"
            " are spelled alike whatever file they come from: 7, not 007 or 7.0; true, not True"
        ),
    )
    if_null: Spelled | None = Field(
        default=None,
        description="the category that a missing value stands for; unset: it is a violation",
    )
    other: Spelled | None = Field(
        default=None,
        description=(
            "the category of values that are not in `values`, that fewer than `min_rows` rows have,"
            " or that training never saw; unset: such a value is a violation"
        ),
    )
    min_rows: Count = Field(
        default=1, description="rows that a value needs to be a category of its own, per file"
    )

    @model_validator(mode="after")
    def _values_are_distinct(self) -> "CategoryColumn":
        if found := twice(list(self.values or ())):
            raise ValueError(f"values of '{self.column}' has twice: {', '.join(found)}")
        if self.min_rows > 1 and (self.other is None or self.values is not None):
            raise ValueError(
                f"min_rows of '{self.column}' needs `other`, the category of rarer values, and no"
                " `values`, which would decide by themselves"
            )
        return self


class RowWeight(Config):
    """How much each row counts in the loss: a column's own numbers, or one weight for some rows."""

    column: str = Field(
        description="the table's column; where `weight` is unset, of weights: numbers, 0 or more"
    )
    equals: str | bool | int = Field(
        default=True, description="with `weight`: the value of the weighted rows"
    )
    weight: Annotated[float, Field(ge=1e-6, le=1e6)] | None = Field(
        default=None,
        description="the weight of rows whose column is `equals`; that of all others is 1",
    )

    @model_validator(mode="after")
    def _has_one_meaning(self) -> "RowWeight":
        if self.weight is None and "equals" in self.model_fields_set and self.equals is not True:
            raise ValueError(
                f"`equals` says which rows of '{self.column}' weigh `weight`, which is unset; give"
                " it, or leave `equals` out, and the column's numbers are the weights"
            )
        return self
