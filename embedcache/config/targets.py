"""What is to be predicted, as phase 1 sees it: label columns."""

from typing import Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Amount, Name, Spelled, check_order, twice

TargetTransform = Literal["standardize", "log10", "log1p", "quantile"]
TargetKind = Literal["regression", "binary", "multiclass", "ordinal"]
MOST_CLASSES = 1000  # of a target; more are no classes but numbers, or names


class TargetColumn(Config):
    """A label column. Null means unobserved: the row does not count for that target."""

    name: Name = Field(description="short name, used in the cache and in reports")
    column: str = Field(
        description="the table's column, of numbers or booleans; of classes also text"
    )
    kind: TargetKind = Field(
        default="regression",
        description=(
            "regression: a number; binary: one of two classes, multiclass: one of several, of which"
            " the model predicts the chances; ordinal: one of several that have an order, such as"
            " grades"
        ),
    )
    classes: tuple[Spelled, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=MOST_CLASSES,
        description=(
            "the labels of the classes in order; binary: the negative one, then the positive, e.g."
            " ['no', 'yes'] or [-1, 1]. Unset: binary: 0 and 1, or false and true; multiclass: the"
            " table's, sorted; ordinal: the table's, which must be numbers"
        ),
    )
    unit: str = Field(default="", description="its unit, for messages and reports")
    low: Amount | None = Field(
        default=None, description="the least admissible label; unset: there is none"
    )
    high: Amount | None = Field(
        default=None, description="the greatest admissible label; unset: there is none"
    )
    transform: TargetTransform = Field(
        default="standardize",
        description=(
            "of a regression target, applied before it is learnt and undone in predictions. What is"
            " learnt is always standardised by the train rows; standardize: the label itself;"
            " log10, log1p: its logarithm, where labels span decades; quantile: the normal score of"
            " its rank among the train labels, for any other skewed or clumped distribution;"
            " predictions then stay between the least and the greatest of these labels"
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
        if self.kind != "regression" and self.transform != "standardize":
            raise ValueError(
                f"'{self.name}' is {self.kind}, so its labels are classes, which have no transform;"
                f" take {self.transform} away"
            )
        if self.kind != "regression" and (self.low is not None or self.high is not None):
            raise ValueError(
                f"'{self.name}' is {self.kind}, so its labels are classes, which have no bounds;"
                " take low and high away"
            )
        return self

    @model_validator(mode="after")
    def _classes_fit_the_kind(self) -> "TargetColumn":
        if self.classes is None:
            return self
        if self.kind == "regression":
            raise ValueError(
                f"'{self.name}' is a regression target, which has no classes; set kind: binary,"
                " multiclass or ordinal, or take classes away"
            )
        if found := twice(list(self.classes)):
            raise ValueError(f"classes of '{self.name}' has twice: {', '.join(found)}")
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError(
                f"'{self.name}' is binary, so classes must name the negative and the positive one,"
                f" found {len(self.classes)}; several are of kind: multiclass, or ordinal"
            )
        return self

    @property
    def has_codes(self) -> bool:
        """Whether labels are codes of several classes: k stands for class k."""
        return self.kind in ("multiclass", "ordinal")
