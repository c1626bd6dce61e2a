"""A process finds its place among the ranks in what each launcher says, and believes srun's words
only in a task of a step.
"""

import os

import pytest

from embedcache.errors import ConfigError
from embedcache.launcher import rank_environment, threads_per_rank

SRUN = {
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_JOB_ID": "1234567",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29511",
}


def test_without_a_launcher_there_is_one_process() -> None:
    found = rank_environment({})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == (
        "0",
        "1",
        "0",
        "1",
    )
    # two runs on one machine do not meet
    assert found["MASTER_PORT"] != rank_environment({})["MASTER_PORT"]


def test_torchrun_and_deepspeed_are_taken_at_their_word() -> None:
    said = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node2",
        "MASTER_PORT": "1234",
    }
    assert rank_environment(said) == said
    # torchrun under srun: its ranks are not srun's
    assert rank_environment({**SRUN, **said}) == said
    assert (
        rank_environment({name: said[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")})[
            "LOCAL_WORLD_SIZE"
        ]
        == "8"
    )


def test_srun_says_the_same_in_its_own_words() -> None:
    assert rank_environment(SRUN) == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29511",
    }
    assert rank_environment({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "9,7"})["LOCAL_WORLD_SIZE"] == "9"


def test_on_one_node_srun_needs_no_address_and_two_jobs_do_not_meet() -> None:
    alone = {name: value for name, value in SRUN.items() if not name.startswith("MASTER")} | {
        "SLURM_STEP_NUM_NODES": "1"
    }
    assert rank_environment(alone)["MASTER_ADDR"] == "127.0.0.1"
    assert (
        rank_environment(alone)["MASTER_PORT"]
        != rank_environment({**alone, "SLURM_JOB_ID": "1234568"})["MASTER_PORT"]
    )


def test_several_nodes_need_the_address_of_rank_0() -> None:
    with pytest.raises(ConfigError, match=r"16 ranks on 2 nodes.*\n.*scontrol show hostnames"):
        rank_environment({name: value for name, value in SRUN.items() if name != "MASTER_ADDR"})


def test_plain_python_in_a_batch_script_is_one_process() -> None:
    batch = {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "16",
        "SLURM_JOB_ID": "1",
        "SLURM_NNODES": "2",
    }
    assert rank_environment(batch)["WORLD_SIZE"] == "1"


def test_ranks_of_one_machine_divide_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert [threads_per_rank(size) for size in (1, 2, 4, 8)] == [6, 3, 1, 1]
