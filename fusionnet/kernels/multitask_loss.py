"""The multi-task loss of `reference.multitask_loss` in one pass over [B, T].

It gives the loss, the tasks' sums and the gradients of both inputs that have one. The denominators
and log-variances are known before the rows are read, so each row's gradient is final as soon as its
loss is: nothing is read twice. A second, tiny kernel adds the blocks' sums in order and puts the
tasks together. Both are bitwise repeatable. Gradients stay fp32 until the backward pass has
multiplied them by what comes from above, which is the loss scale in fp16 training.

With z = logit of the true class: log p_t = logsigmoid(z), 1 - p_t = sigmoid(-z) = -expm1(log p_t),
and d/dz of -(1 - p_t)^g log p_t is (1 - p_t)^g (g p_t log p_t - (1 - p_t)), which has no pole at
p_t = 1 for g < 1. exp and log1p are written out: a GPU's fast ones lose digits, log's near 1 nearly
all.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusionnet.kernels import reference
from fusionnet.kernels.reference import LOG_VARIANCE_LIMIT, TaskTerm

_LOSSES = ("smooth_l1", "mse", "focal")  # their indices are the kernel's codes
_BLOCK_B = 64


def pack(terms: Sequence[TaskTerm]) -> list[float] | None:
    """Return the terms as the operator takes them, [8, T] row by row.

    None where the kernel does not have a task's loss.
    """
    if any(term.loss not in _LOSSES for term in terms):
        return None
    fields = (
        [_LOSSES.index(term.loss) for term in terms],
        [term.mean for term in terms],
        [term.std for term in terms],
        [term.beta for term in terms],
        [term.gamma for term in terms],
        [term.pos_weight for term in terms],
        [term.factor for term in terms],
        [term.regulariser for term in terms],
    )
    return [float(value) for field in fields for value in field]


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _exp(x):
    """Return exp(x) to the last place.

    A GPU's own is 2^(x log2 e) with that product rounded, which is off by |x| / 2 last places.
    """
    whole = tl.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - whole * 0.693145751953125) - whole * 1.4286068203094172e-06  # ln 2 in two parts
    return tl.exp2(whole) * tl.exp(rest)


@triton.jit
@no_type_check
def _row_losses(output, target, kind, beta, gamma, pos_weight):
    """Return the losses of a block and their derivatives with respect to `output`."""
    residual = output - target
    size = tl.abs(residual)
    quadratic = size < beta
    smooth = tl.where(quadratic, tl.div_rn(0.5 * residual * residual, beta), size - 0.5 * beta)
    smooth_slope = tl.where(quadratic, tl.div_rn(residual, beta), tl.where(residual > 0, 1.0, -1.0))

    sign = tl.where(target > 0.5, 1.0, -1.0)
    z = sign * output
    tail = _exp(-tl.abs(z))  # in (0, 1]
    u = tl.div_rn(tail, 2.0 + tail)  # log(1 + tail) = 2 atanh(u), u <= 1/3
    v = u * u
    series = 1.0 / 17 + v * (1.0 / 19)
    series = 1.0 / 13 + v * (1.0 / 15 + v * series)
    series = 1.0 / 9 + v * (1.0 / 11 + v * series)
    series = 1.0 / 5 + v * (1.0 / 7 + v * series)
    log1p = 2.0 * (u + u * v * (1.0 / 3 + v * series))
    log_p, log_miss = tl.minimum(z, 0.0) - log1p, tl.minimum(-z, 0.0) - log1p
    large, little = tl.div_rn(1.0, 1.0 + tail), tl.div_rn(tail, 1.0 + tail)
    p, miss = tl.where(z > 0, large, little), tl.where(z > 0, little, large)
    power = tl.where(gamma == 2.0, miss * miss, _exp(gamma * log_miss))
    class_weight = tl.where(target > 0.5, pos_weight, 1.0)
    focal = -class_weight * power * log_p
    focal_slope = class_weight * sign * power * (gamma * p * log_p - miss)

    loss = tl.where(kind == 0, smooth, tl.where(kind == 1, residual * residual, focal))
    return loss, tl.where(kind == 0, smooth_slope, tl.where(kind == 1, 2.0 * residual, focal_slope))


@triton.jit
@no_type_check
def _rows_kernel(
    outputs_ptr,  # [B, T]
    targets_ptr,  # [B, T]
    weight_ptr,  # [B]
    denominators_ptr,  # [T]
    log_variance_ptr,  # [T]
    constants_ptr,  # [8, T]: the fields of TaskTerm
    partial_ptr,  # [blocks, T]
    gradient_ptr,  # [B, T] fp32
    num_rows,
    num_tasks,
    LIMIT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    tasks = tl.arange(0, BLOCK_T)
    is_task = tasks < num_tasks
    kind = tl.load(constants_ptr + tasks, mask=is_task, other=0.0)[None, :]
    mean = tl.load(constants_ptr + num_tasks + tasks, mask=is_task, other=0.0)[None, :]
    std = tl.load(constants_ptr + 2 * num_tasks + tasks, mask=is_task, other=1.0)[None, :]
    beta = tl.load(constants_ptr + 3 * num_tasks + tasks, mask=is_task, other=1.0)[None, :]
    gamma = tl.load(constants_ptr + 4 * num_tasks + tasks, mask=is_task, other=0.0)[None, :]
    pos_weight = tl.load(constants_ptr + 5 * num_tasks + tasks, mask=is_task, other=1.0)[None, :]
    factor = tl.load(constants_ptr + 6 * num_tasks + tasks, mask=is_task, other=0.0)

    inside = (rows < num_rows)[:, None] & is_task[None, :]
    offset = rows.to(tl.int64)[:, None] * num_tasks + tasks[None, :]
    output = tl.load(outputs_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(targets_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    observed = inside & (target == target)  # NaN is unobserved
    target = tl.where(observed, tl.div_rn(target - mean, std + tl.zeros_like(target)), 0.0)
    weight = tl.load(weight_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    weight = weight[:, None] * observed.to(tl.float32)
    loss, slope = _row_losses(output, target, kind, beta + tl.zeros_like(target), gamma, pos_weight)
    partial = partial_ptr + tl.program_id(0) * num_tasks + tasks
    tl.store(partial, tl.sum(weight * loss, 0), mask=is_task)

    denominator = tl.load(denominators_ptr + tasks, mask=is_task, other=0.0).to(tl.float32)
    s = tl.load(log_variance_ptr + tasks, mask=is_task, other=0.0).to(tl.float32)
    s = tl.minimum(tl.maximum(s, -LIMIT), LIMIT)
    scale = tl.div_rn(factor * _exp(-s), tl.where(denominator > 0, denominator, 1.0))
    tl.store(gradient_ptr + offset, weight * slope * scale[None, :], mask=inside)


@triton.jit
@no_type_check
def _finish_kernel(
    partial_ptr,  # [blocks, T]
    denominators_ptr,  # [T]
    log_variance_ptr,  # [T]
    constants_ptr,  # [8, T]
    total_ptr,  # [1]
    sums_ptr,  # [T]
    s_gradient_ptr,  # [T]
    num_blocks,
    num_tasks,
    share,
    LIMIT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tasks = tl.arange(0, BLOCK_T)
    is_task = tasks < num_tasks
    summed = tl.zeros([BLOCK_B, BLOCK_T], tl.float32)
    for start in range(0, num_blocks, BLOCK_B):
        blocks = start + tl.arange(0, BLOCK_B)
        inside = (blocks < num_blocks)[:, None] & is_task[None, :]
        partial = partial_ptr + blocks[:, None] * num_tasks + tasks[None, :]
        summed += tl.load(partial, mask=inside, other=0.0)
    sums = tl.sum(summed, 0)
    tl.store(sums_ptr + tasks, sums, mask=is_task)

    denominator = tl.load(denominators_ptr + tasks, mask=is_task, other=0.0).to(tl.float32)
    factor = tl.load(constants_ptr + 6 * num_tasks + tasks, mask=is_task, other=0.0)
    regulariser = tl.load(constants_ptr + 7 * num_tasks + tasks, mask=is_task, other=0.0) * share
    s = tl.load(log_variance_ptr + tasks, mask=is_task, other=0.0).to(tl.float32)
    free = (s >= -LIMIT) & (s <= LIMIT)
    s = tl.minimum(tl.maximum(s, -LIMIT), LIMIT)
    present = denominator > 0
    weighted = factor * _exp(-s) * tl.div_rn(sums, tl.where(present, denominator, 1.0))
    regulariser = tl.where(present, regulariser, 0.0)
    tl.store(total_ptr, tl.sum(weighted + regulariser * s, 0))
    tl.store(s_gradient_ptr + tasks, tl.where(free, regulariser - weighted, 0.0), mask=is_task)


@torch.library.custom_op("fusionnet::multitask_loss", mutates_args=())
def multitask_loss(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor,
    denominators: Tensor,
    log_variance: Tensor,
    constants: Sequence[float],
    share: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss [], the tasks' sums [T], and the loss's gradients, all fp32.

    The gradients are with respect to outputs [B, T] and log_variance [T].
    """
    outputs, targets, weight = outputs.contiguous(), targets.contiguous(), weight.contiguous()
    denominators, log_variance = denominators.contiguous(), log_variance.contiguous()
    num_rows, num_tasks = outputs.shape
    table = reference.constants(tuple(constants), outputs.device, torch.float32)  # [8, T]
    num_blocks, block_t = triton.cdiv(num_rows, _BLOCK_B), triton.next_power_of_2(num_tasks)
    partial = torch.empty(num_blocks, num_tasks, device=outputs.device)
    total, sums, gradient, s_gradient = _empty_results(outputs)
    if num_rows:
        given = (outputs, targets, weight, denominators, log_variance, table)
        blocks = (LOG_VARIANCE_LIMIT, _BLOCK_B, block_t)
        _rows_kernel[(num_blocks,)](*given, partial, gradient, num_rows, num_tasks, *blocks)
    summed = (partial, denominators, log_variance, table)
    sizes = (num_blocks, num_tasks, share)
    _finish_kernel[(1,)](
        *summed, total, sums, s_gradient, *sizes, LOG_VARIANCE_LIMIT, _BLOCK_B, block_t
    )
    return total, sums, gradient, s_gradient


def _empty_results(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tasks = outputs.shape[1]
    total = outputs.new_empty((), dtype=torch.float32)
    sums = outputs.new_empty(num_tasks, dtype=torch.float32)
    gradient = outputs.new_empty(outputs.shape, dtype=torch.float32)
    return total, sums, gradient, torch.empty_like(sums)


@multitask_loss.register_fake
def _(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor,
    denominators: Tensor,
    log_variance: Tensor,
    constants: Sequence[float],
    share: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(outputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    outputs, _, _, _, log_variance, _, _ = inputs
    _, sums, gradient, s_gradient = output
    ctx.mark_non_differentiable(sums, gradient, s_gradient)
    ctx.save_for_backward(gradient, s_gradient)
    ctx.dtypes = (outputs.dtype, log_variance.dtype)


def _backward(ctx: Any, from_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient, s_gradient = ctx.saved_tensors
    to_outputs = (from_total * gradient).to(ctx.dtypes[0])
    to_log_variance = (from_total * s_gradient).to(ctx.dtypes[1])
    return to_outputs, None, None, None, to_log_variance, None, None


multitask_loss.register_autograd(_backward, setup_context=_save)
