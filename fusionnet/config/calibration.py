"""What intervals and probabilities promise, and of whom."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from embedcache.config.split import MOST_FOLDS
from embedcache.schema import Config
from embedcache.values import Spelled

Unit = Literal["row", "group", "string"]


class CalibrationConfig(Config):
    """What a finished training measures on rows it did not read, so that promises of it hold.

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
    folds: Annotated[int, Field(ge=0, le=MOST_FOLDS)] = Field(
        default=0,
        description=(
            "0: validation rows say it; K, 2 or more: the folds that train or validate are cut into"
            " K parts, and for each part the whole training is done once more without it, for as"
            " many epochs as the best had. What these are off on their parts says it, of many more"
            " units (all strings but the test ones), of which none has chosen anything; training"
            " takes about K + 1 times as long"
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
            " draws of these, whatever their errors are like (Lee et al. 2023), with folds if the"
            " run errs as the other trainings do. K units cannot guarantee more than K / (K + 1)"
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

    @field_validator("folds")
    @classmethod
    def _are_parts(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("without its only part nothing would be left: 0, or 2 and more")
        return folds
