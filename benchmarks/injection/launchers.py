"""Trainings of two ranks under the real launchers, deepspeed and torchrun: a rank is killed, or the
launcher is told to end, or is killed itself. All ranks end soon, without a traceback of ours, and
the run goes on to the same bits.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.harness.stamp import REPOSITORY
from benchmarks.injection.cases import Case, Outcome, finished, worst
from benchmarks.injection.compare import run_differences
from benchmarks.injection.processes import FOR_ALL
from benchmarks.injection.scene import CACHE, TRAIN, Scene, two_ranks

ENDS_WITHIN_S = 60.0
STARTS_WITHIN_S = 240.0
LOOK_S = 0.05
EPOCHS = ("--set", "train.epochs=12")  # long enough to be struck in the middle
LAUNCHERS = {
    "deepspeed": ("-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port"),
    "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"),
}
STRIKES: dict[str, tuple[str, signal.Signals]] = {
    "rank 0 is killed": ("0", signal.SIGKILL),
    "rank 1 is killed": ("1", signal.SIGKILL),
    "the launcher is killed": ("launcher", signal.SIGKILL),
    "the launcher is told to end": ("launcher", signal.SIGTERM),
    "all are interrupted": ("all", signal.SIGINT),
}


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield a strike of each kind under each launcher, after the first epoch."""
    place = project.parent / "launchers" / "project"
    for launcher in LAUNCHERS:
        for strike in STRIKES:
            label = f"{launcher}: {strike}"
            play = partial(_play, launcher, strike, place)
            yield Case("launcher", label, play, partial(_reference, project, place))


def _reference(project: Path, place: Path) -> None:
    """Train on two ranks undisturbed, if that is still to be done."""
    if not place.exists():
        place.mkdir(parents=True)
        scene = Scene(place, project)
        scene.bring(CACHE)
        done = scene.call(*TRAIN, *EPOCHS, ranks=two_ranks())
        assert done.code == 0, done


def _play(launcher: str, strike: str, reference: Path, scene: Scene) -> Outcome:
    """Train by a launcher, strike, wait, and go on."""
    scene.bring(CACHE)
    who, number = STRIKES[strike]
    port, script = two_ranks()[0]["MASTER_PORT"], str(REPOSITORY / "jobs" / "train.py")
    words = [sys.executable, *LAUNCHERS[launcher], port, script, *TRAIN[1:], *EPOCHS]
    with (scene.folder.parent / "printed").open("w+") as printed:
        started = subprocess.Popen(
            words,
            cwd=scene.folder,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **FOR_ALL, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
        )
        if not _waited(lambda: (scene / "run" / "small_last.pt").exists(), STARTS_WITHIN_S):
            os.killpg(started.pid, signal.SIGKILL)
            return Outcome("hang", "no epoch was trained in time")
        ranks = _ranks(scene.folder)
        if who == "all":
            os.killpg(started.pid, number)
        else:
            victims = {"launcher": started.pid, **ranks}
            if who in victims:  # else it has ended well already
                os.kill(victims[who], number)
        over = _waited(lambda: not _ranks(scene.folder), ENDS_WITHIN_S)
        for pid in _ranks(scene.folder).values():
            os.kill(pid, signal.SIGKILL)
        started.kill()
        started.wait()
        printed.seek(0)
        text = printed.read()
    told = Outcome("detected")
    if not over:
        told = Outcome("hang", f"ranks are still there after {ENDS_WITHIN_S:.0f} s")
    elif "Traceback" in text and any(ours in text for ours in ("/fusionnet/", "/embedcache/")):
        told = Outcome("traceback", text[-600:])
    done = scene.call(*TRAIN, *EPOCHS, "--resume", ranks=two_ranks())
    compared = partial(run_differences, scene / "run", reference / "run")
    return worst(told, finished(done, compared))


def _ranks(folder: Path) -> dict[str, int]:
    """Return the process of each rank that trains in a folder."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                inside = (process / "cwd").readlink() == folder
                entries = (process / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            ranks = [entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")]
            if inside and ranks and any(word.endswith(b"jobs/train.py") for word in words):
                found[ranks[0]] = int(process.name)
    return found


def _waited(condition: Callable[[], bool], longest_s: float) -> bool:
    """Return whether something came to be so in time."""
    end = time.monotonic() + longest_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(LOOK_S)
    return False
