"""Who this process is among the ranks that `torchrun`, `deepspeed` or `srun` started.

They announce ranks in the environment, each in its own words; plain python is one rank. Building
and training read them here. No torch: a job asks before it imports that.
"""

import os
import socket
from collections.abc import Mapping

from embedcache.errors import ConfigError


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


def threads_per_rank(local_size: int) -> int:
    """Return each rank's share of this machine's cores, which `local_size` ranks divide.

    Launchers do not: torchrun says one thread to each rank, deepspeed all cores.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, num_cores // local_size)
