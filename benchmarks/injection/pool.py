"""Cases played side by side, each in a fork with a folder of its own."""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.injection.cases import BROKEN, Case, Outcome
from benchmarks.injection.processes import Conditions, die_with_parent
from benchmarks.injection.scene import Scene

LIMIT_S = 900.0  # for all commands of a case together
LOOK_S = 0.01


class Result(NamedTuple):
    """How a case ended."""

    number: int
    attack: str
    label: str
    verdict: str
    reason: str
    seconds: float


def play(
    cases: Iterable[tuple[int, Case]],
    project: Path,
    folder: Path,
    workers: int = 2,
    tell: Callable[[Result], None] = lambda result: None,
    plant: Callable[[], None] | None = None,
    keep: bool = False,
) -> list[Result]:
    """Return how each numbered case ended, in their order.

    `project` is the finished one that cases copy from; `plant` is called in every command, to plant
    a fault of ours in it; `keep` leaves the folders of cases that broke the promise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o755)
    results: list[Result] = []
    running: dict[int, tuple[int, Case, float]] = {}

    def collect(most: int) -> None:
        while len(running) > most:
            pid = _next_end(running)
            number, case, started = running.pop(pid)
            result = _result(folder, number, case, time.monotonic() - started)
            results.append(result)
            tell(result)
            if not (keep and result.verdict in BROKEN):
                shutil.rmtree(folder / f"{number:05d}", ignore_errors=True)

    for number, case in cases:
        collect(workers - 1)
        if case.needs is not None:
            case.needs()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _play_one(folder, project, number, case, plant)
        running[pid] = (number, case, time.monotonic())
    collect(0)
    return sorted(results)


def _next_end(running: dict[int, tuple[int, Case, float]]) -> int:
    """Wait for the next case that ends; kill one that never does."""
    while True:
        for pid, (_, _, started) in running.items():
            if os.waitpid(pid, os.WNOHANG)[0]:
                return pid
            if time.monotonic() - started > LIMIT_S:
                os.kill(pid, signal.SIGKILL)  # its commands die with it
        time.sleep(LOOK_S)


def _play_one(
    folder: Path, project: Path, number: int, case: Case, plant: Callable[[], None] | None
) -> None:
    """Play a case in this fork, and leave its outcome in a file."""
    found: dict[str, Any]
    try:
        die_with_parent()
        place = folder / f"{number:05d}" / "project"
        place.mkdir(parents=True)
        os.chdir(place)
        scene = Scene(place, project, Conditions(plant=plant))
        found = case.play(scene)._asdict()
    except BaseException:  # noqa: BLE001 - told by the process that forked this one
        found = {"verdict": "defect", "reason": traceback.format_exc()}
    finally:
        (folder / f"{number:05d}.json").write_text(json.dumps(found))
        os._exit(0)


def _result(folder: Path, number: int, case: Case, seconds: float) -> Result:
    """Read how a case ended."""
    file = folder / f"{number:05d}.json"
    if not file.is_file():
        outcome = Outcome("hang", "the case did not end in time")
    else:
        found = json.loads(file.read_text())
        file.unlink()
        outcome = Outcome(**found)
    return Result(number, case.attack, case.label, *outcome, round(seconds, 2))
