"""How rows are assigned to train, validation and test."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Seed, Spelled

Split = Literal["train", "validation", "test"]
SPLITS = ("train", "validation", "test")
# stands beside the indices of SPLITS for rows that a rotation over time leaves out: they are later
# than its test rows
NO_SPLIT = -1
MOST_FOLDS = 1000
# what split columns of other people's tables hold, in lower case
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing", "holdout", "hold-out", "hold_out", "hold out"),
}


@dataclass(frozen=True)
class FoldPlan:
    """Which of a table's folds train, validate and test, and which rotations there are.

    Folds stand in a circle, and `rotation` says which comes first. Where they are `ordered` in
    time, the last of them test, those before them validate, all earlier ones train; a rotation
    leaves that many of the latest out (an expanding window).
    """

    folds: int
    train_folds: int
    validation_folds: int
    rotation: int = 0
    seed: int = 0
    ordered: bool = False

    @property
    def test_folds(self) -> int:
        """How many of the folds test."""
        return self.folds - self.train_folds - self.validation_folds

    @property
    def rotations(self) -> range:
        """The rotations of cross-validation, which test no row twice.

        Raises ValueError where there are none.
        """
        if self.ordered:
            return range(0, self.train_folds, self.test_folds)
        if self.folds % self.test_folds:
            raise ValueError(
                f"{self.test_folds} test folds do not divide {self.folds} folds: set train_folds"
                " and validation_folds so that they leave 1"
            )
        return range(0, self.folds, self.test_folds)

    @property
    def last_rotation(self) -> int:
        """The greatest rotation; over time it leaves one fold to train on."""
        return (self.train_folds if self.ordered else self.folds) - 1


class SplitConfig(Config):
    """How rows are assigned to train, validation and test.

    `group`: StratifiedGroupKFold over `data.group`, inside each `data.stratum`, `folds` folds of
    which the first `train_folds` train, the next `validation_folds` validate and the rest test.
    `random`: each row is assigned for itself. `leave_strings_out`: distinct strings of one string
    column are the groups. `scaffold`: their Bemis-Murcko scaffolds are. `time`: the oldest rows by
    `column` train, the newest test. `column`: the table says it itself, in `column`. `folds`: the
    distinct values of `column` are the folds.
    """

    strategy: Literal[
        "group", "random", "leave_strings_out", "scaffold", "time", "column", "folds"
    ] = Field(
        default="group",
        description=(
            "what decides: group: the values of data.group; random: the row itself;"
            " leave_strings_out: the distinct strings of a column; scaffold: their Bemis-Murcko"
            " scaffolds; time: a column of dates or numbers, the oldest rows train and the newest"
            " test; column: the table's own column of splits; folds: its own column of fold numbers"
        ),
    )
    folds: int | None = Field(
        default=None,
        ge=3,
        le=MOST_FOLDS,
        description=(
            "equal shares that the rows are divided into; unset: 10, with strategy folds as many as"
            " the column has distinct values"
        ),
    )
    train_folds: int | None = Field(
        default=None,
        ge=1,
        description="how many of the folds train; unset: all but one test fold and those that"
        " validate",
    )
    validation_folds: int | None = Field(
        default=None,
        ge=1,
        description="how many of the folds validate, the rest test; unset: a fifth of the folds",
    )
    stratify_by: str | None = Field(
        default=None, description="a target column of classes, whose shares all splits should have"
    )
    string: str | None = Field(
        default=None,
        description=(
            "leave_strings_out, scaffold: the name of the string column (unset: the first)"
        ),
    )
    column: str | None = Field(
        default=None,
        description=(
            "column, folds, time: the table's own column of splits, of folds, or of numbers or ISO"
            " dates"
        ),
    )
    values: dict[Split, tuple[Spelled, ...]] = Field(
        default_factory=dict,
        description=(
            "column: what the column's own spellings stand for, e.g. {train: [tr, 0], test: [1]};"
            " train, training, val, valid, validation, dev, test and holdout need no word, whatever"
            " their case"
        ),
    )
    rotation: int = Field(
        default=0,
        ge=0,
        description=(
            "which fold comes first; rotating over all folds gives cross-validation. With strategy"
            " time: how many of the latest folds are left out"
        ),
    )
    seed: Seed = Field(default=0, description="of all random choices of the split")

    @model_validator(mode="after")
    def _folds_leave_a_test(self) -> "SplitConfig":
        if self.strategy != "folds" or self.folds is not None:
            self.plan()
        return self

    @model_validator(mode="after")
    def _strategy_has_what_it_reads(self) -> "SplitConfig":
        if self.strategy in ("column", "folds", "time") and self.column is None:
            raise ValueError(f"strategy '{self.strategy}' needs split.column")
        if self.values and self.strategy != "column":
            raise ValueError(
                f"split.values is what strategy 'column' reads; the strategy is '{self.strategy}'"
            )
        given = [value.lower() for values in self.values.values() for value in values]
        several = sorted({value for value in given if given.count(value) > 1})
        if several:
            raise ValueError(f"split.values has {', '.join(several)} more than once")
        return self

    def plan(self, num_found: int | None = None) -> FoldPlan:
        """Return which folds are in which split; raises ValueError where that cannot be.

        `num_found` is the number of folds in the table, for strategy folds.
        """
        folds = num_found or self.folds or 10
        most = folds - (self.train_folds or 1) - 1
        validation = self.validation_folds or max(1, min(round(folds / 5), most))
        train = self.train_folds or max(1, folds - validation - 1)
        if train + validation >= folds:
            raise ValueError(
                "train_folds + validation_folds must leave a fold to test on:"
                f" {train} + {validation} >= {folds}"
            )
        ordered = self.strategy == "time"
        plan = FoldPlan(folds, train, validation, self.rotation, self.seed, ordered)
        if self.rotation > plan.last_rotation:
            what = (
                "how many of the latest folds are left out, one being left to train on"
                if ordered
                else f"which of the {folds} folds comes first"
            )
            raise ValueError(
                f"rotation says {what}, 0 to {plan.last_rotation}, found {self.rotation}"
            )
        return plan

    def settled(self) -> "SplitConfig":
        """Return the same with its unset shares in numbers, which strategy folds leaves open."""
        if self.strategy == "folds" and self.folds is None:
            return self
        plan = self.plan()
        names = ("folds", "train_folds", "validation_folds")
        return self.model_copy(update={name: getattr(plan, name) for name in names})

    def split_of_spelling(self) -> dict[str, str]:
        """Return the split that each spelling in `column` stands for, in lower case."""
        common = {text: split for split, texts in SPELLINGS.items() for text in texts}
        own = {text.lower(): str(split) for split, texts in self.values.items() for text in texts}
        return common | own
