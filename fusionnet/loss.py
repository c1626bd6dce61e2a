"""The multi-task loss with learned uncertainty weights (specification, section 5; Kendall et al. 2018).

Sums and counts. A task's loss over one optimizer step is a weighted sum over its observed rows divided by the sum of their weights, over all ranks and
micro-batches: the caller passes that denominator, and each micro-batch contributes its numerator. Nothing depends on how the step is cut.

Standardised residuals. Heads predict (y - mean) / std with the train rows' statistics, and regression losses are taken there, with smooth-L1's beta
divided by std. Smooth-L1 in raw units is std times that, MSE std^2 times; and exp(-s) (c L) + s = exp(-(s - log c)) L + (s - log c) + log c. So this is the
specification's objective up to a constant, with log-variances that start at log std or log std^2 instead of 0: tasks of all units start alike.

Focal loss. Per row (Lin et al. 2017): (1 - p_t)^gamma times cross-entropy, p_t from the plain logit, class weight outside. The specification computes the
focal weight once from the mean of the weighted cross-entropy; that form, which depends on the micro-batch, is `reduction: batch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config import LossConfig, Task

LOG_VARIANCE_LIMIT = 10.0


class LossParts(NamedTuple):
    """One micro-batch's part of the step's loss, and its tasks' weighted sums without graph."""

    total: Float[Tensor, ""]
    task_sums: Float[Tensor, " T"]


class MultiTaskLoss(nn.Module):
    """Weighted sums per task, put together by learned log-variances s = log sigma^2."""

    def __init__(self, tasks: Sequence[Task], scaling: Scaling, config: LossConfig) -> None:
        """`scaling` has the train rows' target statistics, in the order of `tasks`."""
        super().__init__()
        self.tasks = tuple(tasks)
        self.uncertainty = config.uncertainty
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)), requires_grad=config.uncertainty != "none")
        self.register_buffer("mean", torch.as_tensor(scaling.target_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.as_tensor(scaling.target_std, dtype=torch.float32), persistent=False)
        self._std = [float(std) for std in scaling.target_std]
        self._pos_weight = [_pos_weight(task, scaling.positive_rate.get(task.name)) for task in tasks]

    def forward(
        self,
        outputs: Float[Tensor, "B T"],
        targets: Float[Tensor, "B T"],
        weight: Float[Tensor, " B"],
        denominators: Float[Tensor, " T"],
        share: float,
    ) -> LossParts:
        """Return this micro-batch's part of the step's loss.

        `targets` are in raw units, NaN where unobserved; `denominators` are the sums of the weights of observed rows over the whole step; `share` is this
        micro-batch's part of the terms that do not depend on rows. Parts add up to sum_t weight_t (exp(-s_t) L_t + s_t) in the specification's form.
        A task without labels in the step adds nothing and does not move its s.
        """
        outputs, targets = outputs.float(), targets.float()  # fp32 whatever the model computes in
        observed = ~targets.isnan()
        target = torch.where(observed, (targets - self.mean) / self.std, 0.0)
        row_weight = weight.float().unsqueeze(1) * observed
        sums = torch.stack([self._task_sum(task, outputs[:, task], target[:, task], row_weight[:, task]) for task in range(len(self.tasks))])
        present = denominators > 0
        means = sums / torch.where(present, denominators, 1.0)
        return LossParts(self._combine(means, present, share), sums.detach())

    def _task_sum(self, number: int, output: Float[Tensor, " B"], target: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the weighted sum of one task's row losses; `target` is standardised (binary: 0 or 1)."""
        task = self.tasks[number]
        match task.loss_name:
            case "smooth_l1":
                return (weight * F.smooth_l1_loss(output, target, reduction="none", beta=task.beta / self._std[number])).sum()
            case "mse":
                return (weight * (output - target).square()).sum()
            case "bce":
                return (weight * focal(output, target, 0.0, self._pos_weight[number])).sum()
            case "focal" if task.reduction == "row":
                return (weight * focal(output, target, task.gamma, self._pos_weight[number])).sum()
            case "focal":
                return batch_focal(output, target, weight, task.gamma, self._pos_weight[number])

    def _combine(self, means: Float[Tensor, " T"], present: Bool[Tensor, " T"], share: float) -> Float[Tensor, ""]:
        """Return the tasks' parts put together; an absent task's mean is zero and its regulariser left out."""
        task_weight = means.new_tensor([task.weight for task in self.tasks])
        if self.uncertainty == "none":
            return (task_weight * means).sum()
        s = self.log_variance.float().clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        regulariser = share * torch.where(present, s, 0.0)
        if self.uncertainty == "specification":
            return (task_weight * ((-s).exp() * means + regulariser)).sum()
        half = means.new_tensor([1.0 if task.kind == "binary" else 0.5 for task in self.tasks])
        return (task_weight * (half * (-s).exp() * means + 0.5 * regulariser)).sum()


def focal(logit: Float[Tensor, " B"], target: Float[Tensor, " B"], gamma: float, pos_weight: float) -> Float[Tensor, " B"]:
    """Return per row -class weight * (1 - p_t)^gamma * log p_t (Lin et al. 2017, eq. 5), stable at both ends."""
    log_p = F.logsigmoid(torch.where(target > 0.5, logit, -logit))
    class_weight = torch.where(target > 0.5, pos_weight, 1.0)
    if gamma == 0:
        return -class_weight * log_p
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)  # pow has no gradient at 0 for gamma < 1
    return -class_weight * miss.pow(gamma) * log_p


def batch_focal(logit: Float[Tensor, " B"], target: Float[Tensor, " B"], weight: Float[Tensor, " B"], gamma: float, pos_weight: float) -> Float[Tensor, ""]:
    """Return the specification's form as a weighted sum: one focal weight (1 - exp(-L))^gamma from the micro-batch's mean weighted cross-entropy L."""
    total = weight.sum()
    mean = (weight * focal(logit, target, 0.0, pos_weight)).sum() / torch.where(total > 0, total, 1.0)
    return total * (-torch.expm1(-mean)).pow(gamma) * mean


def _pos_weight(task: Task, positive_rate: float | None) -> float:
    """Return the class weight of positives; "auto" is negatives / positives of the train rows."""
    if task.pos_weight != "auto":
        return task.pos_weight
    if task.kind != "binary" or positive_rate is None:
        return 1.0
    assert 0 < positive_rate < 1, "the table check refuses a binary target of one class"
    return (1 - positive_rate) / positive_rate
