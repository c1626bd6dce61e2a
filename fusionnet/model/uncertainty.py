"""How uncertain predictions are, by two causes that more rows do, or do not, take away.

Aleatoric: the noise of labels, which a task with `loss: beta_nll` learns for each row. Epistemic:
how far the members of an ensemble are apart, that is what the train rows do not decide.

Axes: N rows, k members, O outputs of one, T tasks, P predictions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.scaling import Scaling
from fusionnet.config.reward import BinaryUnit
from fusionnet.config.tasks import Task, output_columns
from fusionnet.kernels.reference import log_noise_variance
from fusionnet.model.forward import predictions_of_members
from fusionnet.model.members import members_of


def spread_in_units(
    outputs: Float[Tensor, "N kO"],
    tasks: Sequence[Task],
    scaling: Scaling,
    binary_unit: BinaryUnit = "probability",
) -> Float[Tensor, "N P"]:
    """Return how far members are apart: the standard deviation of their predictions, in units.

    Over k, not k - 1; 0 of a single one.
    """
    members = predictions_of_members(outputs, tasks, scaling, binary_unit)
    return _deviation(torch.stack(members))


def _deviation(members: Float[Tensor, "k N ..."]) -> Float[Tensor, "N ..."]:
    """Return the standard deviation over members; torch's own warns of no rows."""
    return (members - members.mean(0)).square().mean(0).sqrt()


def noise_as_learnt(
    outputs: Float[Tensor, "N kO"], tasks: Sequence[Task], scaling: Scaling
) -> Float[Tensor, "N T"]:
    """Return the standard deviation of labels, of transformed ones where a task has a transform.

    Of several members it is the root of their mean variance; NaN of tasks that learn no noise.
    """
    members = members_of(outputs, sum(task.num_outputs for task in tasks))
    columns = []
    for task, own, std in zip(tasks, output_columns(tasks), scaling.target_std, strict=True):
        if task.has_noise:
            variances = [log_noise_variance(each[:, own.stop - 1]).exp() for each in members]
            columns.append(std * torch.stack(variances).mean(0).sqrt())
        else:
            columns.append(torch.full_like(outputs[:, 0], torch.nan))
    return torch.stack(columns, dim=1)


def spread_as_learnt(
    outputs: Float[Tensor, "N kO"], tasks: Sequence[Task], scaling: Scaling
) -> Float[Tensor, "N T"]:
    """Return how far members' numbers are apart as they are learnt; NaN of tasks with classes."""
    members = members_of(outputs, sum(task.num_outputs for task in tasks))
    columns = []
    for task, own, std in zip(tasks, output_columns(tasks), scaling.target_std, strict=True):
        numbers = torch.stack([each[:, own.start] for each in members])
        spread = std * _deviation(numbers)
        columns.append(spread if task.kind == "regression" else torch.full_like(spread, torch.nan))
    return torch.stack(columns, dim=1)
