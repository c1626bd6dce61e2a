"""What the intervals of predictions promise, and of whom."""

from typing import Literal

from pydantic import Field

from embedcache.schema import Config
from embedcache.values import Spelled

Unit = Literal["row", "group", "string"]


class IntervalConfig(Config):
    """Intervals by split conformal prediction, from validation rows, after the training.

    (Vovk et al. 2005; Lei et al. 2018.) They are as wide as the errors on validation rows ask for,
    in units of the learnt noise where a task has it (`loss: beta_nll`).
    """

    unit: Unit | Literal["auto"] = Field(
        default="auto",
        description=(
            "what comes anew with a new row, and counts alike however many rows it has: the row,"
            " its group (data.group) or its string; auto: what the split leaves out"
        ),
    )
    by: Spelled | None = Field(
        default=None,
        description=(
            "a string column's name, or a category's column: each of its values that has enough"
            " validation rows gets widths of its own (Mondrian)"
        ),
    )
    guaranteed: bool = Field(
        default=False,
        description=(
            "false: as many rows of new units as promised are covered on average, if these are like"
            " the validation units; true: wider, so that the promise holds on average over all"
            " draws of these, whatever their errors are like (Lee et al. 2023). K units cannot"
            " guarantee more than K / (K + 1)"
        ),
    )
