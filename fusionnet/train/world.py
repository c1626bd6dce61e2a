"""The ranks of a training, on torch's process group; a lone rank needs none.

Not `embedcache.ranks.Ranks`, whose objects travel over gloo: here tensors travel on the device.
What a launcher announced is read, and the others are met, by the same functions. No deepspeed: its
engine joins the group that is here, and a lone GPU trains without it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from embedcache.errors import RankError
from embedcache.launcher import rank_environment
from embedcache.ranks import join
from embedcache.system import check_handles
from fusionnet.launchers import is_launched

# what gloo says of a rank that is gone, in the RuntimeError of whichever operation waited for it
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


@contextmanager
def losses_named(rank: int) -> Iterator[None]:
    """Turn what torch raises in any operation when another rank ends into a RankError."""
    try:
        yield
    except RuntimeError as error:
        reason = next((words for words in _LOST if words in str(error)), None)
        if reason is None or "gloo" not in str(error):
            raise
        raise RankError(
            f"another rank of this training ended, so rank {rank} ends too ({reason}); what was"
            " saved is whole: start all ranks again with --resume"
        ) from error


class World:
    """This process among the ranks, and its device.

    Without a launcher it is alone, and the environment stays as it is. DS_ACCELERATOR=cpu keeps to
    the CPU, as it does in DeepSpeed.
    """

    def __init__(self) -> None:
        """Join the process group that the launcher announced."""
        check_handles()
        self.is_launched = is_launched(os.environ)
        self.environment = rank_environment(os.environ)
        self.rank = int(self.environment["RANK"])
        self.size = int(self.environment["WORLD_SIZE"])
        self.local_size = int(self.environment["LOCAL_WORLD_SIZE"])
        self.device = _device(int(self.environment["LOCAL_RANK"]))
        if self.size > 1 and not dist.is_initialized():
            os.environ.update(self.environment)
            backend = dist.get_default_backend_for_device(self.device)
            with losses_named(self.rank):
                join(backend, self.rank, self.size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(device_ids=None if self.device.type == "cpu" else [self.device.index])

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value (a small picklable object of ours) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_rows(self, part: Tensor, sizes: list[int]) -> Tensor:
        """Return all ranks' rows, in rank order; rank r holds `sizes[r]` of them."""
        if self.size == 1:
            return part
        widest = max(sizes)
        padded = part.new_zeros(widest, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([whole[:size] for whole, size in zip(parts, sizes, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        total = values.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def least(self, value: int) -> int:
        """Return the least of all ranks' values."""
        if self.size == 1:
            return value
        box = torch.tensor(value, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MIN)
        return int(box)

    def any(self, asked: bool) -> bool:
        """Return whether any rank says so, on every rank."""
        return self.least(int(not asked)) == 0

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    """Return this rank's accelerator, made the present one, or the CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    torch.accelerator.set_device_index(local_rank)
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, local_rank)
