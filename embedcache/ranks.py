"""The ranks of one build: one does everything that is done once, all share the encoding.

Only small objects and tokens travel, so gloo serves CPUs and GPUs alike. A rank that dies closes
its connections, which ends the others at their next exchange: no rank hangs on a dead one. What
the launcher says of the ranks is read by `launcher`, for training too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from embedcache.errors import RankError
from embedcache.launcher import rank_environment, threads_per_rank

JOINING = timedelta(minutes=3)
# for the slowest share of the encoding; a dead rank is noticed at once
LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """Which of the ranks of a build this process is."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with _losses_named():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object on every rank, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _losses_named():
            dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun, deepspeed or srun announced, and leave them at the end.

    Each computes on a GPU of its own where there is one, else on its share of the cores. Raises
    RankError where the others are not found, ConfigError for what `rank_environment` refuses.
    """
    announced = rank_environment(os.environ)
    local_rank = int(announced["LOCAL_RANK"])
    has_gpu = torch.cuda.is_available()
    device = f"cuda:{local_rank % torch.cuda.device_count()}" if has_gpu else "cpu"
    if announced["WORLD_SIZE"] == "1":
        yield Ranks(device=device)
        return
    torch.set_num_threads(threads_per_rank(int(announced["LOCAL_WORLD_SIZE"])))
    os.environ.update(announced)
    rank, size = int(announced["RANK"]), int(announced["WORLD_SIZE"])
    with _losses_named():
        join("gloo", rank, size, LONGEST_WAIT)
    yield Ranks(rank, size, device)
    dist.destroy_process_group()


def join(backend: str, rank: int, size: int, longest_wait: timedelta | None = None) -> None:
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT of the environment.

    `longest_wait` is for one exchange; without, it is the one that torch has for the backend.
    Raises RankError where the others do not come within some minutes.
    """
    try:
        store, rank, size = next(rendezvous("env://", rank, size, timeout=JOINING))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"rank {rank} of {size} does not find the others at MASTER_ADDR and MASTER_PORT of the"
            f" environment: {reason:.200}"
        ) from error
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest_wait)
    store.set_timeout(default_pg_timeout)  # torch's own again: NCCL waits on it for later groups


@contextmanager
def _losses_named() -> Iterator[None]:
    """Turn what gloo raises when a connection ends into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"another rank of this build ended, so this one ends too ({reason:.200}); strings"
            " already encoded are kept, run it again"
        ) from error
