"""What a designer may choose for one patient, and between which bounds."""

from typing import Annotated

from pydantic import Field, model_validator

from embedcache.config.table import DataConfig
from embedcache.schema import Config
from embedcache.text import nearest
from embedcache.values import Amount, check_order, twice


class DesignConfig(Config):
    """What a designer may choose for one patient (one value of data.group); the rest is given.

    Strings are chosen among the table's, with the categories that vary within a group.
    """

    variables: tuple[str, ...] | None = Field(
        default=None,
        description=(
            "numeric columns that may have any value within bounds; unset: those that vary within"
            " a group; without data.group: none"
        ),
    )
    choices: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] | None = Field(
        default=None,
        description=(
            "sets of numeric columns of which exactly one is 1 and the others are 0; unset: the"
            " largest such sets among columns that vary within a group"
        ),
    )
    bounds: dict[str, tuple[Amount, Amount]] = Field(
        default_factory=dict,
        description=(
            "variable: [low, high], narrower than its values in the table, which bound it per"
            " material; [x, x] holds it at x"
        ),
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "DesignConfig":
        named = [*(self.variables or ()), *(name for each in self.choices or () for name in each)]
        if found := twice(named):
            raise ValueError(
                f"variables and choices name twice: {', '.join(found)}; take one of each away"
            )
        for column, (low, high) in self.bounds.items():
            try:
                check_order(low, high)
            except ValueError as error:
                raise ValueError(f"bounds of '{column:.80}': {error}") from None
        return self

    def check_names(self, data: DataConfig) -> None:
        """Raise ValueError for a name that is no numeric column, or bounds of what is no variable.

        Columns that are derived from a table are checked when it is read.
        """
        numeric = [column.column for column in data.numeric]
        choices = [name for each in self.choices or () for name in each]
        for key, names in (
            ("variables", self.variables or ()),
            ("choices", choices),
            ("bounds", self.bounds),
        ):
            for name in names:
                if name not in numeric:
                    raise ValueError(
                        f"design.{key} names '{name:.80}', which is no column of"
                        f" data.numeric{nearest(name[:80], numeric)}"
                    )
        for name in self.bounds:
            if self.variables is not None and name not in self.variables:
                raise ValueError(
                    f"design.bounds are of '{name}', which is not among design.variables; add it"
                    " there"
                )
