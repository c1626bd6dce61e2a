"""The multi-task loss as its sources write it, for the certificate.

Rows' losses are in standardised units of the target (see `fusionnet.model.loss`). Nothing here is
shared with what trains: constants come from the config and the train rows' statistics.

Axes: B rows, O outputs, T tasks.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config.tasks import Task, output_columns
from fusionnet.recipe import Recipe
from fusionnet.rows.tensors import RowTable

_LIMIT = 10.0  # of a log-variance, on both sides


def rows_loss(
    recipe: Recipe,
    scaling: Scaling,
    log_variance: Float[Tensor, " T"],
    outputs: Float[Tensor, "B O"],
    rows: RowTable,
    denominators: Float[Tensor, " T"],
) -> Float[Tensor, ""]:
    """Return sum over tasks of exp(-s) times the weighted losses of rows over the denominator."""
    total, columns = outputs.new_zeros(()), output_columns(recipe.tasks)
    for number, task in enumerate(recipe.tasks):
        seen = rows.targets[:, number].isfinite()
        if denominators[number] == 0 or not seen.any():
            continue
        output, weight = outputs[seen, columns[number]], rows.weight[seen].to(outputs.dtype)
        label = rows.targets[seen, number].double()  # its transform is applied
        mean, std = scaling.target_mean[number], scaling.target_std[number]
        target = ((label - mean) / std).to(outputs.dtype)
        if task.loss_name == "beta_nll":
            summed = (weight * _noisy_losses(task, output, target)).sum()
        elif task.has_codes:
            summed = (weight * _class_losses(task, scaling, output, label.long())).sum()
        else:
            summed = _weighted_losses(task, scaling, std, output.squeeze(1), target, weight)
        mean_loss = summed / denominators[number].to(outputs.dtype)
        if task.loss_name == "beta_nll":  # weighed by each row's own variance
            total = total + task.weight * mean_loss
            continue
        half = recipe.loss.uncertainty == "kendall" and task.kind == "regression"
        factor = task.weight * (0.5 if half else 1.0)
        total = total + factor * torch.exp(-_s(recipe, log_variance)[number]) * mean_loss
    return total


def regularisers(
    recipe: Recipe, log_variance: Float[Tensor, " T"], denominators: Float[Tensor, " T"]
) -> Float[Tensor, ""]:
    """Return what no row decides: the sum of s over the tasks with labels, times their weights."""
    s = _s(recipe, log_variance)
    terms = [weight * s[number] for number, weight in enumerate(regulariser_weights(recipe))]
    present = [term for term, weights in zip(terms, denominators, strict=True) if weights > 0]
    return torch.stack([0 * s.sum(), *present]).sum()


def regulariser_weights(recipe: Recipe) -> list[float]:
    """Return by task what its s is multiplied by."""
    factor = {"specification": 1.0, "kendall": 0.5, "none": 0.0}[recipe.loss.uncertainty]
    return [0.0 if task.has_noise else factor * task.weight for task in recipe.tasks]


def _s(recipe: Recipe, log_variance: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    held = recipe.loss.uncertainty == "none"
    return 0 * log_variance if held else log_variance.clamp(-_LIMIT, _LIMIT)


def _weighted_losses(
    task: Task,
    scaling: Scaling,
    std: float,
    output: Float[Tensor, " B"],
    target: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Return the weighted sum of the losses of rows that have a label."""
    if task.loss_name == "mse":
        return (weight * (output - target) ** 2).sum()
    if task.loss_name == "smooth_l1":
        beta, off = task.beta / std, (output - target).abs()
        return (weight * torch.where(off < beta, off**2 / (2 * beta), off - beta / 2)).sum()
    positive = target > 0.5
    log_p = torch.where(positive, F.logsigmoid(output), F.logsigmoid(-output))  # of the label
    cross_entropy = -torch.where(positive, _positive_weight(task, scaling), 1.0) * log_p
    if task.loss_name == "bce":
        return (weight * cross_entropy).sum()
    if task.reduction == "batch":  # one focal weight, from the micro-batch's mean
        mean = (weight * cross_entropy).sum() / weight.sum()
        return weight.sum() * (-torch.expm1(-mean)) ** task.gamma * mean
    return (weight * (-torch.expm1(log_p)) ** task.gamma * cross_entropy).sum()


def _noisy_losses(
    task: Task, output: Float[Tensor, "B 2"], target: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return minus the log density of a normal distribution, times its variance to the beta."""
    variance = torch.exp(_LIMIT * torch.tanh(output[:, 1] / _LIMIT))
    losses = F.gaussian_nll_loss(output[:, 0], target, variance, reduction="none", eps=0)
    return losses * variance.detach() ** task.nll_beta


def _class_losses(
    task: Task, scaling: Scaling, output: Float[Tensor, "B _"], label: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return minus the weighted log of the chance of the label's class."""
    wide = output.double()
    chances = wide.softmax(1)
    if task.loss_name == "ordered_logit":  # of being at or above each class but the first
        logits = torch.cat([wide[:, :1], -F.softplus(wide[:, 1:])], dim=1).cumsum(1)
        edges = [torch.ones_like(wide[:, :1]), logits.sigmoid(), torch.zeros_like(wide[:, :1])]
        chances = -torch.cat(edges, dim=1).diff(dim=1)
    weights = _class_weights(task, scaling)
    losses = [-weights[k] * row[k].log() for row, k in zip(chances, label.tolist(), strict=True)]
    return torch.stack(losses).to(output.dtype)


def _class_weights(task: Task, scaling: Scaling) -> list[float]:
    classes = list(task.classes or ())
    if task.class_weights == "auto":
        rates = scaling.class_rates[task.name]
        num_present = len([rate for rate in rates if rate])
        return [1 / (rate * num_present) if rate else 1.0 for rate in rates]
    given = task.class_weights or {}
    return [given.get(name, 1.0) for name in classes]


def _positive_weight(task: Task, scaling: Scaling) -> float:
    if task.pos_weight != "auto":
        return task.pos_weight
    rate = scaling.positive_rate[task.name]
    return (1 - rate) / rate
