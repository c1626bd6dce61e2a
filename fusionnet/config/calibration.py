"""What intervals and probabilities promise, and of whom."""

from typing import Literal

from pydantic import Field

from embedcache.schema import Config
from embedcache.values import Spelled

Unit = Literal["row", "group", "string"]


class CalibrationConfig(Config):
    """What a finished training measures on validation rows, so that promises of it hold.

    Intervals of numbers and sets of classes by split conformal prediction (Vovk et al. 2005; Lei et
    al. 2018; Sadinle et al. 2019): as wide as errors there ask for, in units of the learnt noise
    where a task has it (`loss: beta_nll`). Probabilities by one temperature (Guo et al. 2017).
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
    probabilities: Literal["temperature", "none"] = Field(
        default="temperature",
        description=(
            "temperature: logits of classes are divided by the number that makes the validation"
            " labels most likely, which changes no rank and no predicted class; none: probabilities"
            " as the loss has trained them"
        ),
    )
