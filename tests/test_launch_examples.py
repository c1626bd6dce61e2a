"""The launch examples are what a user copies: they parse, and every command in them, commented ones
too, uses options that exist.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from fusionnet.config.train import OptimConfig, TrainConfig
from fusionnet.train.dsconfig import deepspeed_config

SCRIPTS = ("one_node.sh", "several_nodes.sh", "slurm.sh")
OF_OUR_JOBS = {"--config", "--set", "--resume"}
OF_SLURM = {"--nodes", "--ntasks", "--kill-on-bad-exit"}


def commands(script: Path) -> list[str]:
    """Return the commands of a script that start ranks or a job, with continued lines joined and
    commented ones uncovered.
    """
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.sub(r"^#\s+", "", line) for line in text.splitlines()]
    return [
        line
        for line in lines
        if re.match(
            r"(DS_ACCELERATOR=cpu )?(deepspeed|torchrun|srun|python -m) .*(jobs/train.py|jobs\.)",
            line,
        )
    ]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The options of each launcher."""
    torchrun = {option for action in get_args_parser()._actions for option in action.option_strings}
    code = (
        "import sys; from deepspeed.launcher.runner import parse_args; sys.argv[1:] = ['--help'];"
        " parse_args()"
    )
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    return {
        "torchrun": torchrun,
        "deepspeed": set(re.findall(r"--[a-z_]+", shown)),
        "srun": OF_SLURM,
        "python": set(),
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses(name: str, repository: Path) -> None:
    subprocess.run(["bash", "-n", str(repository / "configs" / "launch" / name)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_exists(name: str, repository: Path, known: dict[str, set[str]]) -> None:
    found = commands(repository / "configs" / "launch" / name)
    assert len(found) >= 3
    for command in found:
        launchers = [
            word
            for word in re.findall(r"^(?:DS_ACCELERATOR=cpu )?(\w+)|\b(torchrun)\b", command)
            for word in word
            if word
        ]
        allowed = OF_OUR_JOBS.union(*(known[launcher] for launcher in launchers))
        options = {option.partition("=")[0] for option in re.findall(r"(?<=\s)--[\w-]+", command)}
        assert options <= allowed, f"{command}: {options - allowed}"
        for file in re.findall(r"\b(?:jobs|configs)/[\w./]+", command):
            assert (repository / file).exists(), file
        for module in re.findall(r"-m (jobs\.\w+)", command):
            assert (repository / f"{module.replace('.', '/')}.py").is_file(), module


def test_slurm_asks_for_the_16_gpus_of_the_specification(repository: Path) -> None:
    text = (repository / "configs" / "launch" / "slurm.sh").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, flags=re.MULTILINE))
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == 16
    assert re.findall(r"--nproc-per-node (\d+)", text) == [asked["gpus-per-node"]]


def test_the_deepspeed_file_and_the_hostfile_are_accepted(repository: Path) -> None:
    folder = repository / "configs" / "launch"
    plain, found = (
        deepspeed_config(
            TrainConfig(deepspeed_config=file),
            OptimConfig(),
            world_size=8,
            on_gpu=True,
            num_micro_batches=1,
        )
        for file in (None, str(folder / "deepspeed.json"))
    )
    bucket = json.loads((folder / "deepspeed.json").read_text())["zero_optimization"][
        "reduce_bucket_size"
    ]
    assert found["zero_optimization"] == {
        **plain["zero_optimization"],
        "reduce_bucket_size": bucket,
    }
    assert all(
        re.fullmatch(r"\S+ slots=\d+", line)
        for line in (folder / "hostfile").read_text().splitlines()
    )
