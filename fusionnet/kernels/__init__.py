"""The operations of the network that have GPU kernels, and the choice of kernel or plain PyTorch.

Which tensors take kernels is told by `embedcache.kernels.has_kernels`; all others take `reference`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedcache.encoder.dropout import dropout
from embedcache.kernels import HAS_TRITON, has_kernels
from embedcache.kernels.seeds import draw_seed
from fusionnet.kernels import reference
from fusionnet.kernels.reference import Segment, TaskTerm

if HAS_TRITON:  # before the functions below, some of which bear a module's name or part of it
    from fusionnet.kernels import drop_heads as _drop_heads
    from fusionnet.kernels import gather as _gather
    from fusionnet.kernels import gelu_dropout as _gelu
    from fusionnet.kernels import head_ends as _heads
    from fusionnet.kernels import multitask_loss as _loss


def drop_heads(hidden: Float[Tensor, "B D"], num_heads: int, p: float) -> Float[Tensor, "B D"]:
    """Return rows with whole heads dropped with probability p, the others scaled by 1 / (1 - p).

    That is attention dropout over a single key.
    """
    if not has_kernels(hidden) or torch.compiler.is_compiling() or hidden.dtype == torch.float64:
        keep = hidden.new_empty(len(hidden), num_heads, 1).bernoulli_(1 - p).div_(1 - p)
        return (hidden.unflatten(1, (num_heads, -1)) * keep).flatten(1)
    return _drop_heads.drop_heads(hidden, num_heads, p, draw_seed(hidden.device))


def gather_add(
    tables: Sequence[tuple[Float[Tensor, "_ D"], Int[Tensor, " B"]]],
    rows: Sequence[Float[Tensor, "B D"]],
    bias: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """Return bias + sum of `table[index]` over (table, index) + sum of `rows`.

    The kernel reads one table: all of them stacked, the bias added to the first one's few rows.
    """
    if not tables or not has_kernels(bias):
        return reference.gather_add(tables, rows, bias)
    (first, _), *others = tables
    stacked = torch.cat([first + bias, *(table for table, _ in others)])
    offsets = [sum(len(table) for table, _ in tables[:column]) for column in range(len(tables))]
    columns = [index + offset for (_, index), offset in zip(tables, offsets, strict=True)]
    summed = sum(rows[1:], rows[0]) if rows else None
    return _gather.gather_add(stacked, torch.stack(columns, dim=1), summed)


def gather_dropout(
    hidden: Float[Tensor, "U D"], index: Int[Tensor, " B"], p: float
) -> Float[Tensor, "B D"]:
    """Return dropout of `hidden[index]` by the kernel (see `has_kernels`).

    Its mask is seeded from torch's generator of the device.
    """
    return _gather.gather_dropout(hidden, index, p, draw_seed(hidden.device))


def gelu_dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Return dropout of GELU of x; elements are dropped with probability p, 0 in evaluation.

    torch.compile fuses the plain version, and GELU alone is one kernel already.
    """
    if p == 0 or not has_kernels(x) or torch.compiler.is_compiling() or x.dtype == torch.float64:
        return dropout(F.gelu(x), p, training=True)
    return _gelu.gelu_dropout(x, p, draw_seed(x.device))


def head_ends(
    hidden: Float[Tensor, "B W"], last: Float[Tensor, " N"], segments: Sequence[Segment]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B V"]]:
    """Return by the kernel what `reference.head_ends` does, outputs in fp32 (see `has_kernels`).

    Its mask is seeded from torch's generator of the device.
    """
    seed = draw_seed(hidden.device) if any(segment.p for segment in segments) else None
    return _heads.head_ends(hidden, last, tuple(segments), seed)


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

    The kernel has no loss that depends on a batch's mean.
    """
    constants = _loss.pack(terms) if has_kernels(outputs) else None
    if constants is None:
        return reference.multitask_loss(
            outputs, targets, weight, denominators, log_variance, terms, share
        )
    total, sums, _, _ = _loss.multitask_loss(
        outputs, targets, weight, denominators, log_variance, constants, share
    )
    return total, sums
