"""From a logit, as its loss has trained it, to the probability of a positive label.

A weighted or focal loss is not least at the log-odds of a label, so its sigmoid is a score: it
ranks rows, and its mean is not the rate of positives. What it is least at is known. With class
weight w and exponent g, a label that is positive with probability eta costs on average

    w eta (1 - q)^g (-log q) + (1 - eta) q^g (-log(1 - q))

at score q = sigmoid(z). The derivative is zero where eta / (1 - eta) = B / (w A) with

    A = (1 - q)^g / q - g (1 - q)^(g - 1) log q,    B = q^g / (1 - q) - g q^(g - 1) log(1 - q),

for w = 1 the result of Charoenphakdee et al. 2021 (On focal loss for class-posterior probability
estimation), for g = 0 the shift of a prior. B / A grows with z, so ranks stay. In logits, with
f(z) = -q log(q) / (1 - q) = e^z log(1 + e^-z), which is between 0 and 1:

    logit(eta) = (1 + g) z + log(1 + g f(-z)) - log(1 + g f(z)) - log w

A score of 0.5 is the probability 1 / (1 + w): with `pos_weight: auto` the rate of positives in the
train rows. Where rows have weights, rates and probabilities are of weighted rows.

The focal weight of `reduction: batch` comes from the mean of a micro-batch, and no such formula
holds: its tasks have scores alone.
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config.tasks import Task
from fusionnet.kernels.reference import log_probabilities
from fusionnet.model.loss import class_weight, class_weights

_FLAT = 30.0  # from here on f is 1 in float32 and e^z, which it is computed by, may overflow


def probability(logit: Float[Tensor, "*B"], gamma: float, pos_weight: float) -> Float[Tensor, "*B"]:
    """Return the probability that a logit stands for, given its loss; differentiable.

    It is the sigmoid, to the bit, where the loss is plain cross-entropy.
    """
    ours, others = (1 + gamma * _f(sign * logit) for sign in (-1, 1))
    return ((1 + gamma) * logit + ours.log() - others.log() - math.log(pos_weight)).sigmoid()


def _f(z: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    z = z.clamp_max(_FLAT)
    return F.softplus(-z) * z.exp()


def probability_of_task(
    logit: Float[Tensor, "*B"], task: Task, scaling: Scaling
) -> Float[Tensor, "*B"]:
    """Return a binary task's probability, or its score where it has nothing else."""
    if not task.has_probability:
        return logit.sigmoid()
    gamma = task.gamma if task.loss_name == "focal" else 0.0
    return probability(logit, gamma, class_weight(task, scaling.positive_rate.get(task.name)))


def class_probabilities(
    outputs: Float[Tensor, "B _"], task: Task, scaling: Scaling, weighted: bool
) -> Float[Tensor, "B K"]:
    """Return the chances of a task's K classes; `weighted`: as class weights have moved them.

    A loss with class weights w is least at chances that are proportional to w times the true ones.
    Where they are `weighted`, the largest is the class that the loss decides for.
    """
    log_p = log_probabilities(outputs, ordered=task.loss_name == "ordered_logit")
    if not weighted:
        weights = log_p.new_tensor(class_weights(task, scaling))
        log_p = (log_p - weights.log()).log_softmax(1)
    return log_p.exp()


def meaning_of(task: Task, scaling: Scaling, temperature: float = 1.0) -> str:
    """Return what the predictions of a task with classes are, in words for who reads them.

    The logits of its probabilities were divided by the temperature.
    """
    if task.has_codes:
        decided = "" if task.class_weights is None else ", weighted by its class weight,"
        return (
            f"{task.column}: the class whose chance{decided} is the largest, beside the chances of"
            " all classes"
        )
    if not task.has_probability:
        return (
            f"{task.column}: a score between 0 and 1, not a probability (reduction: batch); above"
            " 0.5 it counts as positive"
        )
    weight = class_weight(task, scaling.positive_rate.get(task.name))
    odds = weight ** (1 / temperature)
    what = "a positive label" if task.classes is None else task.classes[1]
    return (
        f"{task.column}: the probability of {what}; above {1 / (1 + odds):.3g} (a score"
        " of 0.5) it counts as positive"
    )
