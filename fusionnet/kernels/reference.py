"""What the kernels compute, in plain PyTorch: readable, differentiable, of any floating type.

It is what runs wherever there is no kernel. The kernels are held to these functions: at most twice
their error, both against float64 (tests/fusionnet/kernels).
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedcache.kernels.reference import keep_mask

GELU_LINE = 1024  # elements of a row of dropout's mask after GELU, whatever the tensor's shape
LOG_VARIANCE_LIMIT = 10.0


class TaskTerm(NamedTuple):
    """One task's term of the loss: factor * exp(-s) * L + regulariser * s.

    L is in standardised units of the target.
    """

    loss: Literal[
        "smooth_l1",
        "mse",
        "beta_nll",
        "focal",
        "batch_focal",
        "cross_entropy",
        "ordered_logit",
    ]
    mean: float = 0.0
    std: float = 1.0
    beta: float = 1.0  # smooth_l1, in standardised units
    nll_beta: float = 0.5
    gamma: float = 0.0  # focal; 0 is cross-entropy
    pos_weight: float = 1.0
    factor: float = 1.0
    regulariser: float = 1.0
    class_weights: tuple[float, ...] = ()  # of cross_entropy and ordered_logit, K of them

    @property
    def num_outputs(self) -> int:
        """How many columns of the outputs are the task's."""
        if self.loss == "beta_nll":
            return 2
        num_classes = len(self.class_weights)
        return num_classes - (self.loss == "ordered_logit") if num_classes else 1


def drop_heads(
    hidden: Float[Tensor, "B D"], num_heads: int, p: float, seed: Int[Tensor, " 1"]
) -> Float[Tensor, "B D"]:
    """Return rows with whole heads dropped; row b's heads are row b of a mask by `keep_mask`."""
    keep = keep_mask(seed, len(hidden), num_heads, p).unsqueeze(2)
    return torch.where(keep, hidden.unflatten(1, (num_heads, -1)) / (1 - p), 0.0).flatten(1)


class Segment(NamedTuple):
    """The columns of one head's first layer; dropout with probability p follows its ReLU."""

    width: int
    p: float
    ends: bool  # whether the head's last layer comes next


def head_ends(
    hidden: Float[Tensor, "B W"],
    last: Float[Tensor, " N"],
    segments: Sequence[Segment],
    seed: Int[Tensor, " 1"] | None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B V"]]:
    """Return the outputs of the heads that end, and the activations of those that go on.

    `hidden` are the first layers' outputs, the T segments that end first; `last` are the weights,
    then the biases, of the T last layers. Each segment's mask is cut from one by `keep_mask`.
    """
    ends = [segment.width for segment in segments if segment.ends]
    weights, biases = last[: sum(ends)].split(ends), last[sum(ends) :]
    active = [each.relu() for each in hidden.split([segment.width for segment in segments], dim=1)]
    if seed is not None:
        for place, first in enumerate(mask_firsts(segments)):
            width, p, _ = segments[place]
            keep = keep_mask(seed, len(hidden), first + width, p)[:, first:]
            active[place] = torch.where(keep, active[place] / (1 - p), 0.0)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    columns = [x.to(wide) @ w.to(wide) for x, w in zip(active, weights, strict=False)]
    going_on = active[len(ends) :] or [hidden[:, :0]]
    return torch.stack(columns, dim=1) + biases, torch.cat(going_on, dim=1)


def mask_firsts(segments: Sequence[Segment]) -> list[int]:
    """Return each segment's first column in dropout's mask, which is drawn four at a time."""
    return [
        sum(-(-segment.width // 4) * 4 for segment in segments[:place])
        for place in range(len(segments))
    ]


def gather_add(
    tables: Sequence[tuple[Float[Tensor, "_ D"], Int[Tensor, " B"]]],
    rows: Sequence[Float[Tensor, "B D"]],
    bias: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """Return bias + sum of `table[index]` over (table, index) + sum of `rows`."""
    total = bias
    for table, index in tables:
        # whose backward takes an eighth of that of table[index] on a CPU
        total = total + table.index_select(0, index)
    for dense in rows:
        total = total + dense
    return total


def gather_dropout(
    hidden: Float[Tensor, "U D"], index: Int[Tensor, " B"], p: float, seed: Int[Tensor, " 1"]
) -> Float[Tensor, "B D"]:
    """Return dropout of `hidden[index]`, the mask drawn per row and element by `keep_mask`."""
    rows = hidden.index_select(0, index)
    keep = keep_mask(seed, rows.shape[0], rows.shape[1], p)
    return torch.where(keep, rows / (1 - p), 0.0)


def gelu_dropout(x: Float[Tensor, "*shape"], p: float, seed: Int[Tensor, " 1"]) -> Tensor:
    """Return dropout of GELU of x, the mask drawn by `keep_mask` for its elements in lines.

    A line is `GELU_LINE` elements, the last one what is left.
    """
    num_lines = -(-x.numel() // GELU_LINE)
    keep = keep_mask(seed, num_lines, GELU_LINE, p).flatten()[: x.numel()].view(x.shape)
    return torch.where(keep, F.gelu(x) / (1 - p), 0.0)


def segment_sum(
    gradient: Float[Tensor, "B D"], index: Int[Tensor, "B C"], num_segments: int
) -> Float[Tensor, "{num_segments} D"]:
    """Return per segment u the sum of the rows b of `gradient` with `index[b, c] == u`.

    A row counts once for each such c: this is the backward pass of a gather.
    """
    total = gradient.new_zeros(num_segments, gradient.shape[1])
    for column in index.unbind(1):
        total = total.index_add(0, column, gradient)
    return total


def multitask_loss(
    outputs: Float[Tensor, "B O"],
    targets: Float[Tensor, "B T"],
    weight: Float[Tensor, " B"],
    denominators: Float[Tensor, " T"],
    log_variance: Float[Tensor, " T"],
    terms: Sequence[TaskTerm],
    share: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " T"]]:
    """Return this micro-batch's share of the loss, and the tasks' weighted sums.

    A task with denominator 0 (no labels in the step) adds nothing. The O outputs are those of the T
    tasks side by side.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)  # fp32 whatever the model computes in
    outputs, targets, weight = outputs.to(dtype), targets.to(dtype), weight.to(dtype)
    observed = ~targets.isnan()
    columns = outputs.split([term.num_outputs for term in terms], dim=1)
    sums = torch.stack(
        [
            _task_sum(
                term,
                columns[t],
                torch.where(observed[:, t], (targets[:, t] - term.mean) / term.std, 0.0),
                weight * observed[:, t],
            )
            for t, term in enumerate(terms)
        ]
    )
    present = denominators > 0
    means = sums / torch.where(present, denominators, 1.0).to(dtype)
    s = log_variance.to(dtype).clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    if any(term.loss == "beta_nll" for term in terms):  # which has a variance for each row
        learnt = tuple(0.0 if term.loss == "beta_nll" else 1.0 for term in terms)
        s = s * constants(learnt, means.device, dtype)
    factor = constants(tuple(term.factor for term in terms), means.device, dtype)
    regulariser = constants(tuple(term.regulariser for term in terms), means.device, dtype)
    weighted = factor * (-s).exp() * means
    return (weighted + share * regulariser * torch.where(present, s, 0.0)).sum(), sums


@cache  # for ever: a CUDA graph may read it
def constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return numbers on a device, copied there once.

    A buffer of the module would be rounded to fp16 with the module.
    """
    return torch.tensor(values, dtype=dtype, device=device)


def _task_sum(
    term: TaskTerm,
    outputs: Float[Tensor, "B _"],
    target: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Return the weighted sum of one task's row losses.

    `target` is standardised, 0 or 1 where there are two classes, else the class's number.
    """
    if term.class_weights:
        return (weight * class_losses(term, outputs, target)).sum()
    if term.loss == "beta_nll":
        return (weight * beta_nll(outputs, target, term.nll_beta)).sum()
    output = outputs.squeeze(1)
    match term.loss:
        case "smooth_l1":
            losses = F.smooth_l1_loss(output, target, reduction="none", beta=term.beta)
            return (weight * losses).sum()
        case "mse":
            return (weight * (output - target).square()).sum()
        case "focal":
            return (weight * focal(output, target, term.gamma, term.pos_weight)).sum()
        case "batch_focal":
            return batch_focal(output, target, weight, term.gamma, term.pos_weight)
        case "cross_entropy" | "ordered_logit":
            raise AssertionError("a loss of several classes needs their weights")


def beta_nll(
    outputs: Float[Tensor, "B 2"], target: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """Return per row sigma^(2 beta) times the Gaussian negative log-likelihood, less its constant.

    The factor has no gradient (Seitzer et al. 2022, equation 5). The outputs are the mean and what
    `log_noise_variance` reads.
    """
    log_variance = log_noise_variance(outputs[:, 1])
    squares = (target - outputs[:, 0]).square() * (-log_variance).exp()
    factor = (beta * log_variance.detach()).exp()
    return factor * (squares + log_variance) / 2


def log_noise_variance(output: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return log sigma^2 of an output, in standardised units of the target.

    It has the limits of the tasks' log-variances, and a slope everywhere.
    """
    return LOG_VARIANCE_LIMIT * (output / LOG_VARIANCE_LIMIT).tanh()


def class_losses(
    term: TaskTerm, outputs: Float[Tensor, "B _"], target: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return per row -class weight * log probability of the class that the target numbers."""
    label = target.long()
    log_p = log_probabilities(outputs, ordered=term.loss == "ordered_logit")
    class_weight = constants(term.class_weights, log_p.device, log_p.dtype)[label]
    return -class_weight * log_p.gather(1, label.unsqueeze(1)).squeeze(1)


def log_probabilities(outputs: Float[Tensor, "B _"], ordered: bool) -> Float[Tensor, "B K"]:
    """Return the log probabilities of K classes, from K logits or from K - 1 ordered ones.

    The latter are a_1 and gaps g_2, ..., with cumulative logits a_k = a_(k-1) - softplus(g_k) of
    P(class >= k) (McCullagh 1980): they are in order whatever the network puts out. With s the
    logistic function, s(a) - s(a - softplus(g)) = s(a) s(softplus(g) - a) s(g): a sum of
    logsigmoids, which no difference of near numbers enters.
    """
    if not ordered:
        return outputs.log_softmax(1)
    gaps = outputs[:, 1:]
    cumulative = torch.cat([outputs[:, :1], -F.softplus(gaps)], dim=1).cumsum(1)  # a_k
    above, below = F.logsigmoid(cumulative), F.logsigmoid(-cumulative)
    between = above[:, :-1] + below[:, 1:] + F.logsigmoid(gaps)
    return torch.cat([below[:, :1], between, above[:, -1:]], dim=1)


def focal(
    logit: Float[Tensor, " B"], target: Float[Tensor, " B"], gamma: float, pos_weight: float
) -> Float[Tensor, " B"]:
    """Return per row -class weight * (1 - p_t)^gamma * log p_t, stable at both ends.

    Lin et al. 2017, equation 5.
    """
    log_p = F.logsigmoid(torch.where(target > 0.5, logit, -logit))
    class_weight = torch.where(target > 0.5, pos_weight, 1.0)
    if gamma == 0:
        return -class_weight * log_p
    # pow has no gradient at 0 for gamma < 1
    miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -class_weight * miss.pow(gamma) * log_p


def batch_focal(
    logit: Float[Tensor, " B"],
    target: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    gamma: float,
    pos_weight: float,
) -> Float[Tensor, ""]:
    """Return the specification's form of the focal loss as a weighted sum.

    It has one focal weight (1 - exp(-L))^gamma, from the micro-batch's mean weighted cross-entropy
    L.
    """
    total = weight.sum()
    summed = (weight * focal(logit, target, 0.0, pos_weight)).sum()
    mean = summed / torch.where(total > 0, total, 1.0)
    return total * (-torch.expm1(-mean)).pow(gamma) * mean
