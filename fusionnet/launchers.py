"""Which launchers started this process, and whether they are still there.

`deepspeed` is two processes: a runner, which people see and kill, and the launcher that it starts,
which starts the ranks and does not notice that its runner is gone. So all launchers among the
ancestors are looked at. A shell is none: who starts `nohup torchrun ... &` may log out.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import psutil

LAUNCHERS = (
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torchrun",
    "torch.distributed.launch",
    "torch.distributed.run",
    "slurmstepd:",  # as it calls itself, before the step's number
)
_WITH_VALUE = ("-W", "-X")  # python's own options that take a word


def is_launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher announced ranks, in the words that `embedcache.launcher` reads."""
    return "RANK" in environment or "SLURM_STEP_NUM_TASKS" in environment


class Launcher(NamedTuple):
    """A process that started ranks, and what it runs."""

    process: psutil.Process
    name: str

    @property
    def is_alive(self) -> bool:
        """Whether it runs; one that was killed and that nobody has waited for does not."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def launchers_above(environment: Mapping[str, str]) -> list[Launcher]:
    """Return the launchers among this process's ancestors, nearest first; none without ranks."""
    if not is_launched(environment):
        return []
    above = [Launcher(each, _program_of(each)) for each in psutil.Process().parents()]
    return [each for each in above if each.name in LAUNCHERS]


def program(words: Sequence[str]) -> str:
    """Return what a command line runs: of python's, the name of the script or the module."""
    if not words or not words[0].split():
        return ""  # it has just ended
    name = PurePath(words[0].split()[0]).name
    if not name.startswith("python"):
        return name
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, "")
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return PurePath(word).name
    return name


def _program_of(process: psutil.Process) -> str:
    try:
        return program(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
