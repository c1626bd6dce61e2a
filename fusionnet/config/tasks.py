"""What is learnt: target columns, their losses, metrics and goals."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.config.table import TargetColumn
from embedcache.schema import Config
from embedcache.values import Share, Spread, Weight, Width

LossName = Literal["smooth_l1", "mse", "bce", "focal"]
_LOSSES_OF: dict[str, tuple[LossName, ...]] = {
    "regression": ("smooth_l1", "mse"),
    "binary": ("focal", "bce"),
}
REGRESSION_METRICS = ("mae", "rmse", "r2")
BINARY_METRICS = ("accuracy", "auroc", "f1", "recall", "precision")
METRICS = {"regression": REGRESSION_METRICS, "binary": BINARY_METRICS}


class Task(TargetColumn):
    """One target column, its loss and its head."""

    loss: LossName | None = Field(
        default=None, description="unset: smooth_l1 for regression, focal for binary"
    )
    weight: Weight = Field(
        default=1.0,
        description=(
            "factor on the whole of the task's term (the specification's 0.3 for auxiliary tasks)"
        ),
    )
    head: tuple[Width, ...] = Field(
        default=(128,), min_length=1, max_length=32, description="hidden widths"
    )
    head_dropout: Share = Field(default=0.1, description="after the head's first hidden layer")
    beta: Spread = Field(
        default=1.0,
        description=(
            "smooth_l1: where the quadratic part ends, in the unit of the target as it is learnt"
            " (decades where transform is log10)"
        ),
    )
    gamma: float = Field(default=2.0, ge=0, le=100, description="focal: exponent of 1 - p_t")
    pos_weight: Annotated[float, Field(ge=1e-6, le=1e6)] | Literal["auto"] = Field(
        default="auto",
        description=(
            "class weight of positives, undone in probabilities; auto: negatives / positives of the"
            " train rows"
        ),
    )
    reduction: Literal["row", "batch"] = Field(
        default="row",
        description=(
            "focal: per row (Lin et al. 2017), or from the micro-batch's mean as specified, which"
            " gives scores and no probabilities"
        ),
    )
    goals: dict[str, float] = Field(
        default_factory=dict,
        description="metric: value to reach, shown as pass or fail by evaluate_model",
    )

    @model_validator(mode="after")
    def _loss_fits_the_kind(self) -> "Task":
        if self.loss is not None and self.loss not in _LOSSES_OF[self.kind]:
            raise ValueError(
                f"task '{self.name}' is {self.kind}, which takes the losses"
                f" {' or '.join(_LOSSES_OF[self.kind])}, not {self.loss}"
            )
        return self

    @model_validator(mode="after")
    def _goals_are_metrics(self) -> "Task":
        unknown = [metric for metric in self.goals if metric not in self.metrics]
        if unknown:
            raise ValueError(
                f"goals of task '{self.name}' names {', '.join(f'{name:.80}' for name in unknown)};"
                f" the metrics of a {self.kind} task are {', '.join(self.metrics)}"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics in raw units, then those of transformed labels: log10_mae."""
        own = METRICS[self.kind]
        if self.transform == "identity":
            return own
        return (*own, *(f"{self.transform}_{metric}" for metric in own))

    @property
    def has_probability(self) -> bool:
        """Whether a binary task's logits say how probable a positive label is, for any row."""
        return self.loss_name == "bce" or (self.loss_name == "focal" and self.reduction == "row")

    @property
    def loss_name(self) -> LossName:
        """The loss, with the default of the task's kind filled in."""
        return self.loss or _LOSSES_OF[self.kind][0]


class LossConfig(Config):
    """How the tasks' losses are weighed against each other."""

    uncertainty: Literal["specification", "kendall", "none"] = Field(
        default="specification",
        description=(
            "specification: exp(-s) L + s; kendall: the same with 1/2 where Kendall et al. (2018)"
            " has it; none: L"
        ),
    )
