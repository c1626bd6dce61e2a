"""What a later reinforcement-learning stage maximises."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Amount, Spelled, Spread

BinaryUnit = Literal["probability", "score"]
Unseen = Literal["refuse", "flag", "allow"]


class RewardTerm(Config):
    """`weight` times a task's prediction (raw units; for a binary task as `binary` says)."""

    task: str = Field(description="name of the task")
    label: Spelled | None = Field(
        default=None,
        description=(
            "the class whose chance is read, of a task with several; unset: of an ordinal task the"
            " mean of the class numbers 0, 1, ... by their chances"
        ),
    )
    weight: Amount = Field(description="factor on its prediction")


class RewardPenalty(Config):
    """`penalty` is subtracted where a task's prediction is above or below a threshold."""

    task: str = Field(description="name of the task")
    label: Spelled | None = Field(
        default=None, description="the class whose chance is read, as for a term"
    )
    above: Amount | None = Field(default=None, description="threshold; or give `below`")
    below: Amount | None = Field(default=None, description="threshold; or give `above`")
    penalty: float = Field(ge=0, le=1e30, description="subtracted beyond the threshold")
    width: Spread | None = Field(
        default=None,
        description=(
            "of the sigmoid that stands for the threshold where gradients are wanted; unset: none"
        ),
    )

    @model_validator(mode="after")
    def _one_side(self) -> "RewardPenalty":
        if (self.above is None) == (self.below is None):
            raise ValueError(f"a penalty on '{self.task}' needs either 'above' or 'below'")
        return self


class RewardConfig(Config):
    """What a later reinforcement-learning stage maximises (specification, section 10)."""

    terms: tuple[RewardTerm, ...] = Field(
        default=(), description="weighted predictions, summed over the list"
    )
    penalties: tuple[RewardPenalty, ...] = Field(
        default=(), description="subtracted where a prediction crosses a threshold"
    )

    binary: BinaryUnit = Field(
        default="probability",
        description=(
            "what a binary task's prediction is here: its probability, or its score, the sigmoid of"
            " the logit, which class weights and focal loss move"
        ),
    )
    pessimism: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0,
        description=(
            "k: k times the reward's standard deviation is subtracted: the spread of the members'"
            " own rewards, so that a policy gains nothing where they disagree (needs an ensemble,"
            " model.members: 8), and of a string that training never saw what the reward was off on"
            " strings left out (needs a split that leaves some out, and more of them with"
            " calibration.folds: 5)"
        ),
    )
    unseen: Unseen = Field(
        default="flag",
        description=(
            "strings and categories that training never saw: refuse: such a row breaks a rule;"
            " flag: it has a reward, and `known` says so; allow: nobody looks"
        ),
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the reward reads, term by term."""
        return (*(term.task for term in self.terms), *(each.task for each in self.penalties))
