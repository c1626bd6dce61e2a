"""Who this process is among the ranks, read from the environment that a launcher made.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. `srun`
starts one process per rank and says the same in words of its own, which are translated here. Only
variables that srun sets for a step's tasks are believed: SLURM_PROCID and SLURM_NTASKS also exist
in a batch script, where one plain `python` would wait for ranks that nobody starts.
"""

import socket
from collections.abc import Mapping

from embedcache.errors import ConfigError


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as
    torch.distributed reads them.

    Without a launcher this is one process. Raises ConfigError for an srun over several nodes that
    was not told where rank 0 listens.
    """
    if "RANK" in environment:
        size = environment.get("WORLD_SIZE", "1")
        found = {
            "RANK": environment["RANK"],
            "WORLD_SIZE": size,
            "LOCAL_RANK": environment.get("LOCAL_RANK", "0"),
        }
        # torchrun's and deepspeed's words
        found["LOCAL_WORLD_SIZE"] = environment.get(
            "LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size)
        )
    elif "SLURM_STEP_NUM_TASKS" in environment:
        found = _of_srun(environment)
    else:
        found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    alone = found["WORLD_SIZE"] == "1"
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR", "127.0.0.1")
    found["MASTER_PORT"] = (
        str(_free_port())
        if alone
        else environment.get("MASTER_PORT", found.get("MASTER_PORT", "29500"))
    )
    return found


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
