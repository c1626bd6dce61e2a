"""Who this process is among the ranks that a launcher started, and the ranks of one build.

`torchrun`, `deepspeed` and `srun` announce ranks in the environment, each in its own words; plain
python is one rank. Training reads them here too (`fusionnet.train.engine.World`).

Of the ranks that build one cache, rank 0 does everything that is done once, and all share the
encoding. Only small objects and tokens travel, so gloo serves CPUs and GPUs alike. A rank that dies
closes its connections, which ends the others at their next exchange: no rank hangs on a dead one.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from embedcache.errors import ConfigError, RankError

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
    rank, size = _join(int(announced["RANK"]), int(announced["WORLD_SIZE"]))
    yield Ranks(rank, size, device)
    dist.destroy_process_group()


def threads_per_rank(local_size: int) -> int:
    """Return each rank's share of this machine's cores, which `local_size` ranks divide.

    Launchers do not: torchrun says one thread to each rank, deepspeed all cores.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, num_cores // local_size)


def _join(rank: int, size: int) -> tuple[int, int]:
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT of the environment; return who we are."""
    try:
        store, rank, size = next(rendezvous("env://", rank, size, timeout=JOINING))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"rank {rank} of {size} does not find the others at MASTER_ADDR and MASTER_PORT of the"
            f" environment: {reason:.200}"
        ) from error
    with _losses_named():
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT
        )
    return rank, size


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


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a launcher says of this process, in the words of torch.distributed.

    The keys are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    Without a launcher this is one process. Raises ConfigError for an srun over several nodes that
    was not told where rank 0 listens.
    """
    if "RANK" in environment:
        found = _of_torchrun(environment)
    elif "SLURM_STEP_NUM_TASKS" in environment:
        found = _of_srun(environment)
    else:
        found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    port = environment.get("MASTER_PORT", found.get("MASTER_PORT", "29500"))
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR", "127.0.0.1")
    # two runs of one process each on one machine must not meet
    found["MASTER_PORT"] = str(_free_port()) if found["WORLD_SIZE"] == "1" else port
    return found


def _of_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what torchrun says, or deepspeed, which calls LOCAL_WORLD_SIZE LOCAL_SIZE."""
    size = environment.get("WORLD_SIZE", "1")
    local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size))
    return {
        "RANK": environment["RANK"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get("LOCAL_RANK", "0"),
        "LOCAL_WORLD_SIZE": local_size,
    }


def _of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    size, nodes = environment["SLURM_STEP_NUM_TASKS"], environment.get("SLURM_STEP_NUM_NODES", "1")
    if nodes != "1" and "MASTER_ADDR" not in environment:
        raise ConfigError(
            f"srun started {size} ranks on {nodes} nodes, but MASTER_ADDR does not say where rank 0"
            " listens; put this into the batch script:\n  export MASTER_ADDR=$(scontrol show"
            ' hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500'
        )
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", size)),
        # two jobs on one node must not meet
        "MASTER_PORT": str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000),
    }


def _tasks_per_node(text: str) -> str:
    """Return the first number of Slurm's `8(x2),4`: the ranks of the fullest node."""
    return text.partition("(")[0].partition(",")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
