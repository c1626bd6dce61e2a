"""First weights, drawn from torch's random numbers.

On the meta device, where a run's weights are checked before they have memory, nothing is drawn:
torch would import its compiler for it, a second of each start.
"""

import torch
from torch import Tensor


def normal(*shape: int, std: float = 1.0) -> Tensor:
    """Return normal numbers of mean 0."""
    weight = torch.empty(shape)
    return weight if weight.is_meta else weight.normal_(std=std)


def signs(*shape: int) -> Tensor:
    """Return +1 and -1 by chance."""
    weight = torch.empty(shape)
    return weight if weight.is_meta else 2.0 * torch.randint(0, 2, shape) - 1
