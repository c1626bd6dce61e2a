"""How rows are assigned to train, validation and test."""

from typing import Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Seed

SPLITS = ("train", "validation", "test")


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
