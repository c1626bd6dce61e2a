"""The multi-task loss with learned uncertainty weights.

Specification, section 5; Kendall et al. 2018.

Sums and counts. A task's loss over one optimizer step is a weighted sum over its observed rows
divided by the sum of their weights, over all ranks and micro-batches: the caller passes that
denominator, and each micro-batch contributes its numerator. Nothing depends on how the step is cut.

Standardised residuals. Heads predict (y - mean) / std with the train rows' statistics, and
regression losses are taken there, with smooth-L1's beta divided by std. Smooth-L1 in raw units is
std times that, MSE std^2 times; and exp(-s) (c L) + s = exp(-(s - log c)) L + (s - log c) + log c.
So this is the specification's objective up to a constant, with log-variances that start at log std
or log std^2 instead of 0: tasks of all units start alike. Where a task has a transform, y is the
transformed label, and so are the units: beta of a log10 target is in decades.

Focal loss. Per row (Lin et al. 2017): (1 - p_t)^gamma times cross-entropy, p_t from the plain
logit, class weight outside. The specification computes the focal weight once from the mean of the
weighted cross-entropy; that form, which depends on the micro-batch, is `reduction: batch`.

Noise. `beta_nll` learns a variance for each row (`kernels.reference.beta_nll`), in standardised
units, and needs no further one for the task: its s is 0.

Several classes. The loss is the cross-entropy of the label's class, times the class's weight;
ordinal classes have cumulative logits in order (`kernels.reference.log_probabilities`).

The arithmetic is in `fusionnet.kernels`; here it is decided what a task's constants are.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.errors import ConfigError
from embedcache.scaling import Scaling
from fusionnet.config.tasks import LossConfig, LossName, Task
from fusionnet.kernels import multitask_loss
from fusionnet.kernels.reference import TaskTerm
from fusionnet.model.members import members_of


class LossParts(NamedTuple):
    """One micro-batch's share of the step's loss, and its tasks' weighted sums without graph."""

    total: Float[Tensor, ""]
    task_sums: Float[Tensor, " T"]


class MultiTaskLoss(nn.Module):
    """Weighted sums per task, put together by learned log-variances s = log sigma^2."""

    def __init__(self, tasks: Sequence[Task], scaling: Scaling, config: LossConfig) -> None:
        """`scaling` has the train rows' target statistics, in the order of `tasks`."""
        super().__init__()
        self.uncertainty = config.uncertainty
        self.log_variance = nn.Parameter(
            torch.zeros(len(tasks)), requires_grad=config.uncertainty != "none"
        )
        statistics = zip(scaling.target_mean, scaling.target_std, strict=True)
        # Plain numbers, not buffers: fp16 training rounds a module's buffers, and a target's mean
        # may not fit.
        self._terms = tuple(
            _term(task, float(mean), float(std), scaling, config)
            for task, (mean, std) in zip(tasks, statistics, strict=True)
        )

        # what is least at the right noise, whatever training multiplies it by
        self._judging = tuple(term._replace(nll_beta=0.0) for term in self._terms)
        self._num_outputs = sum(term.num_outputs for term in self._terms)
        self._is_of_rows = all(term.loss != "batch_focal" for term in self._terms)

    def forward(
        self,
        outputs: Float[Tensor, "B kO"],
        targets: Float[Tensor, "B T"],
        weight: Float[Tensor, " B"],
        denominators: Float[Tensor, " T"],
        share: float,
    ) -> LossParts:
        """Return this micro-batch's share of the step's loss: the mean of the members' losses.

        `targets` are transformed, not yet standardised, NaN where unobserved; `denominators` are
        the sums of the weights of observed rows over the whole step; `share` is this micro-batch's
        share of the terms that do not depend on rows. Shares add up to sum_t weight_t (exp(-s_t)
        L_t + s_t) in the specification's form. A task without labels in the step adds nothing and
        does not move its s.
        """
        return self._parts(self._terms, outputs, targets, weight, denominators, share)

    @torch.no_grad()
    def judged(
        self,
        outputs: Float[Tensor, "B kO"],
        targets: Float[Tensor, "B T"],
        weight: Float[Tensor, " B"],
        denominators: Float[Tensor, " T"],
    ) -> LossParts:
        """Return the loss of all rows of a split as they are judged: noise by its likelihood."""
        return self._parts(self._judging, outputs, targets, weight, denominators, 1.0)

    def _parts(
        self,
        terms: Sequence[TaskTerm],
        outputs: Float[Tensor, "B kO"],
        targets: Float[Tensor, "B T"],
        weight: Float[Tensor, " B"],
        denominators: Float[Tensor, " T"],
        share: float,
    ) -> LossParts:
        s = torch.zeros_like(self.log_variance) if self.uncertainty == "none" else self.log_variance
        constants = (denominators, s, terms)
        if outputs.shape[1] == self._num_outputs:
            total, sums = multitask_loss(outputs, targets, weight, *constants, share)
            return LossParts(total, sums.detach())
        members = members_of(outputs, self._num_outputs)
        num = len(members)
        weight = weight / num  # so that sums over members are means
        if self._is_of_rows:  # the rows of all members are those of one batch
            members = [torch.cat(members)]
            targets, weight = targets.repeat(num, 1), weight.repeat(num)
        share /= len(members)
        parts = [multitask_loss(each, targets, weight, *constants, share) for each in members]
        total, sums = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
        return LossParts(total, sums.detach())


def _term(task: Task, mean: float, std: float, scaling: Scaling, config: LossConfig) -> TaskTerm:
    """Return one task's constants.

    With uncertainty none, s is held at 0, where exp(-s) L is L and nothing regularises; so it is
    for a task with noise, whose loss has each row's own variance instead.
    """
    name: LossName | Literal["batch_focal"] = task.loss_name
    gamma = task.gamma
    if name == "focal" and task.reduction == "batch":
        name = "batch_focal"
    elif name == "bce":
        name, gamma = "focal", 0.0
    kendall = config.uncertainty == "kendall"
    half = 0.5 if kendall and task.kind == "regression" and not task.has_noise else 1.0
    regulariser = {"specification": 1.0, "kendall": 0.5, "none": 0.0}[config.uncertainty]
    return TaskTerm(
        loss=name,
        mean=mean,
        std=std,
        beta=task.beta / std,
        nll_beta=task.nll_beta,
        gamma=gamma,
        pos_weight=class_weight(task, scaling.positive_rate.get(task.name)),
        factor=half * task.weight,
        regulariser=0.0 if task.has_noise else regulariser * task.weight,
        class_weights=class_weights(task, scaling),
    )


def class_weight(task: Task, positive_rate: float | None) -> float:
    """Return the class weight of positives; "auto" is negatives / positives of the train rows."""
    if task.pos_weight != "auto":
        return task.pos_weight
    if task.kind != "binary" or positive_rate is None:
        return 1.0
    assert 0 < positive_rate < 1, "the table check refuses a binary target of one class"
    return (1 - positive_rate) / positive_rate


def class_weights(task: Task, scaling: Scaling) -> tuple[float, ...]:
    """Return the weights of a task's K classes, none where it has no codes.

    "auto" gives all classes that train rows have the same share of the loss, 1 on average over
    rows. Raises ConfigError for a weight of a class that there is not.
    """
    if not task.has_codes:
        return ()
    classes, given = task.classes or (), task.class_weights
    if given == "auto":
        rates = scaling.class_rates[task.name]
        present = sum(rate > 0 for rate in rates)
        return tuple(1 / (present * rate) if rate > 0 else 1.0 for rate in rates)
    weights = given or {}
    if unknown := [name for name in weights if name not in classes]:
        raise ConfigError(
            f"class_weights of task '{task.name}' names {', '.join(map(repr, unknown)):.80}, which"
            f" is not among the table's classes: {', '.join(classes):.400}"
        )
    return tuple(weights.get(name, 1.0) for name in classes)
