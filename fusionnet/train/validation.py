"""Validation between epochs: the loss and metrics of rows that are not trained on.

Ranks share the rows, so they have different numbers of batches; and a run that is told to stop
cannot wait for minutes of them (launchers kill 30 s later). So ranks tell each other after each
batch whether to stop, and who has no batch left goes on telling until nobody has. That is the 0.2
ms of a step (`loop`), where a batch on a CPU takes some ten; one rank alone pays nothing.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.live.shared import vectors_of_all_columns
from fusionnet.config.tasks import Task
from fusionnet.metrics import Metrics, task_metrics
from fusionnet.model.forward import forward_batches, refuse_non_finite, to_units
from fusionnet.model.members import members_of
from fusionnet.stopping import is_asked
from fusionnet.train.trainer import Trainer

Part = tuple[Float[Tensor, "B columns"], Int[Tensor, " B"]]
StringTables = list[Float[Tensor, "_S _E"]]  # one per string column
LEAST_LOSS = 1e-6  # a task without any error does not outweigh all others
_ASKED, _WORKING, _DONE = range(3)  # the least of all ranks' decides


class Validated(NamedTuple):
    """What an epoch's validation found."""

    loss: float | None  # of the tasks that have labels; None where no task has any
    error: float | None  # the mean of the logarithms of their losses, by the tasks' weights
    metrics: dict[str, Metrics]  # by target column


def validate(trainer: Trainer, tables: StringTables) -> Validated | None:
    """Return the validation loss and each task's metrics, on every rank.

    `tables` are the present vectors of all strings. None where a rank was told to stop meanwhile.
    """
    own = _own_part(trainer, tables)
    if own is None:
        return None
    rows, world, recipe = trainer.validation_rows, trainer.world, trainer.recipe
    num_tasks, shares = len(recipe.tasks), rows.shares(world.size)
    num_outputs = trainer.model.network.heads.num_outputs
    everyone = world.gather_rows(own[0], shares)  # [N, k O + T + 1]
    if not everyone[:, :num_outputs].isfinite().all():  # on every rank
        number = world.gather_rows(own[1], shares)
        what = "the validation rows (counted over all files, from 0)"
        members = members_of(everyone[:, :num_outputs], num_outputs // recipe.model.members)
        outputs, nothing = torch.stack(members).sum(0), everyone[:, :0]
        refuse_non_finite(outputs, recipe.tasks, nothing, (), number, what)
    result: Validated | None = None
    if world.is_main:
        outputs, targets, weight = everyone.split([num_outputs, num_tasks, 1], dim=1)
        denominators = (weight * targets.isfinite()).sum(0)  # [T]
        loss = trainer.model.loss.judged(outputs, targets, weight.squeeze(1), denominators)
        scaling = trainer.cache.scaling
        predictions = to_units(outputs, recipe.tasks, scaling, "score")
        raw = scaling.in_units(targets.cpu().double()).numpy()
        metrics = task_metrics(recipe.tasks, raw, predictions.cpu().numpy())
        if denominators.any():
            error = mean_log_loss(loss.task_sums, denominators, recipe.tasks)
            result = Validated(float(loss.total), error, metrics)
        else:
            result = Validated(None, None, metrics)
    return world.broadcast(result)


def mean_log_loss(
    sums: Float[Tensor, " T"], denominators: Float[Tensor, " T"], tasks: Sequence[Task]
) -> float | None:
    """Return the mean of log L_t, by the tasks' weights: the multi-task loss at the log-variances
    that fit these rows best, min_s exp(-s) L + s = 1 + log L. None where no weight is positive.

    Of a task with noise, whose loss is half of log sigma^2 + r^2 / sigma^2, it is that sum less 1:
    the logarithm of the mean square where the noise is one number that fits.
    """
    weight = sums.new_tensor([task.weight for task in tasks]) * (denominators > 0)
    if not weight.sum() > 0:
        return None
    mean = sums / denominators.clamp_min(torch.finfo(sums.dtype).tiny)
    has_noise = torch.tensor([task.has_noise for task in tasks], device=sums.device)
    log = torch.where(has_noise, 2 * mean - 1, mean.clamp_min(LEAST_LOSS).log())
    return float((weight * log).sum() / weight.sum())


def string_tables(trainer: Trainer) -> StringTables:
    """Return the present vectors of all strings, one table per string column."""
    with trainer.model.autocast():
        return vectors_of_all_columns(trainer.sources)


def _own_part(trainer: Trainer, tables: StringTables) -> Part | None:
    """Return what metrics need of this rank's rows, and their numbers (collective).

    None on every rank where one of them was told to stop.
    """
    world, tasks = trainer.world, trainer.recipe.tasks
    width = trainer.model.network.heads.num_outputs + len(tasks) + 1
    values = [torch.zeros(0, width, device=world.device)]
    numbers = [torch.zeros(0, dtype=torch.int64, device=world.device)]
    with closing(_parts(trainer, tables)) as parts:
        while True:
            part = next(parts, None)
            own = _ASKED if is_asked() else _DONE if part is None else _WORKING
            decided = world.least(own)
            if decided == _ASKED:
                return None
            if decided == _DONE:
                return torch.cat(values), torch.cat(numbers)
            if part is not None:
                values.append(part[0])
                numbers.append(part[1])


def _parts(trainer: Trainer, tables: StringTables) -> Generator[Part, None, None]:
    """Yield outputs, targets and weight of this rank's rows, and their numbers, batch by batch."""
    world, batch_rows = trainer.world, trainer.recipe.train.eval_batch_rows
    shown = world.is_main and trainer.verbose
    for block in trainer.validation_rows.blocks(world.rank, world.size):
        start = 0
        for outputs in forward_batches(trainer.model, tables, block, batch_rows, shown):
            batch = slice(start, start + len(outputs))
            weight = block.weight[batch].unsqueeze(1)
            yield torch.cat([outputs, block.targets[batch], weight], dim=1), block.row[batch]
            start += len(outputs)
