"""What is learnt: target columns, their losses, metrics and goals."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.config.targets import TargetColumn
from embedcache.schema import Config
from embedcache.values import Share, Spelled, Spread, Weight, Width

LossName = Literal["smooth_l1", "mse", "beta_nll", "bce", "focal", "cross_entropy", "ordered_logit"]
_LOSSES_OF: dict[str, tuple[LossName, ...]] = {
    "regression": ("smooth_l1", "mse", "beta_nll"),
    "binary": ("focal", "bce"),
    "multiclass": ("cross_entropy",),
    "ordinal": ("ordered_logit", "cross_entropy"),
}
REGRESSION_METRICS = ("mae", "rmse", "r2", "spearman")
BINARY_METRICS = (
    *("accuracy", "auroc", "f1", "recall", "precision"),
    *("auprc", "balanced_accuracy"),
)
MULTICLASS_METRICS = ("accuracy", "balanced_accuracy", "f1", "auroc", "auprc")
ORDINAL_METRICS = (*MULTICLASS_METRICS, "mae", "kappa", "spearman")
METRICS = {
    "regression": REGRESSION_METRICS,
    "binary": BINARY_METRICS,
    "multiclass": MULTICLASS_METRICS,
    "ordinal": ORDINAL_METRICS,
}
LOGARITHMS = ("log10", "log1p")  # transforms of which metrics are reported as well
ClassWeight = Annotated[float, Field(ge=1e-6, le=1e6)]


class Task(TargetColumn):
    """One target column, its loss and its head."""

    loss: LossName | None = Field(
        default=None,
        description=(
            "unset: smooth_l1 for regression, focal for binary, cross_entropy for multiclass,"
            " ordered_logit for ordinal: K - 1 cumulative logits, whose order is kept (McCullagh"
            " 1980). beta_nll learns the noise of each row beside its number (Seitzer et al. 2022)"
        ),
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
    nll_beta: Share = Field(
        default=0.5,
        description=(
            "beta_nll: exponent of the variance that a row's loss is multiplied by; 0 is the"
            " likelihood, by which noisy rows teach little, with 1 numbers are learnt as by mse"
        ),
    )
    gamma: float = Field(default=2.0, ge=0, le=100, description="focal: exponent of 1 - p_t")
    class_weights: dict[Spelled, ClassWeight] | Literal["auto"] | None = Field(
        default=None,
        description=(
            "multiclass, ordinal: weight of each class in the loss, those not named 1; undone in"
            " probabilities, not in which class is predicted. auto: so that all classes weigh"
            " alike; unset: 1"
        ),
    )
    pos_weight: ClassWeight | Literal["auto"] = Field(
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
    def _class_weights_fit(self) -> "Task":
        if self.class_weights is None:
            return self
        if not self.has_codes:
            raise ValueError(
                f"task '{self.name}' is {self.kind}: class_weights are of multiclass and ordinal"
                " tasks" + ("; set pos_weight" if self.kind == "binary" else "")
            )
        if isinstance(self.class_weights, dict) and self.classes is not None:
            for name in self.class_weights:
                if name not in self.classes:
                    raise ValueError(
                        f"class_weights of task '{self.name}' names '{name:.80}', which is not"
                        f" among its classes: {', '.join(self.classes)}"
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
        if self.transform not in LOGARITHMS:
            return own
        return (*own, *(f"{self.transform}_{metric}" for metric in own))

    @property
    def num_classes(self) -> int:
        """K, the number of classes of a task with codes; 1 for others, which have one number.

        The table's classes are known once a cache is built from it (`recipe.observed_tasks`).
        """
        if not self.has_codes:
            return 1
        assert self.classes is not None, "the cache has named them"
        return len(self.classes)

    @property
    def num_outputs(self) -> int:
        """How many numbers the task's head puts out.

        A logit for each class or threshold; of a number with its noise the number first.
        """
        if self.has_noise:
            return 2
        return self.num_classes - 1 if self.loss_name == "ordered_logit" else self.num_classes

    @property
    def has_probability(self) -> bool:
        """Whether the logits say how probable a class is, for any row."""
        if self.loss_name == "focal":
            return self.reduction == "row"
        return self.kind != "regression"

    @property
    def has_noise(self) -> bool:
        """Whether the network says of each row how noisy its label is (aleatoric uncertainty)."""
        return self.loss_name == "beta_nll"

    @property
    def loss_name(self) -> LossName:
        """The loss, with the default of the task's kind filled in."""
        return self.loss or _LOSSES_OF[self.kind][0]


def output_columns(tasks: Sequence[Task]) -> list[slice]:
    """Return which of the O columns of the heads' outputs are each task's."""
    return _columns([task.num_outputs for task in tasks])


def prediction_columns(tasks: Sequence[Task]) -> list[slice]:
    """Return which of the P columns of predictions are each task's: a number, or K chances."""
    return _columns([task.num_classes for task in tasks])


def _columns(widths: Sequence[int]) -> list[slice]:
    ends = list(accumulate(widths))
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


class LossConfig(Config):
    """How the tasks' losses are weighed against each other."""

    uncertainty: Literal["specification", "kendall", "none"] = Field(
        default="specification",
        description=(
            "specification: exp(-s) L + s; kendall: the same with 1/2 where Kendall et al. (2018)"
            " has it; none: L"
        ),
    )
