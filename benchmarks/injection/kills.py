"""SIGKILL of builds, trainings, evaluations and predictions: before each of their file operations,
and at random times; then the same command again, which must end as if nothing had been.

What was there before must be there at every moment: after the kill the old cache is looked for, or
a checkpoint, and after the next command the whole result is compared, bit by bit.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.injection.cases import Case, Outcome, finished, judged, worst
from benchmarks.injection.compare import (
    cache_differences,
    files_below,
    metrics_differences,
    prediction_differences,
    run_differences,
)
from benchmarks.injection.processes import Conditions, Done, in_fork
from benchmarks.injection.results import RESUME
from benchmarks.injection.scene import (
    BUILD,
    CACHE,
    EVALUATE,
    PREDICT,
    RUN,
    TRAIN,
    Scene,
    call_traced,
    more_rows,
    traced,
    two_ranks,
)

SIMILAR = re.compile(r"cache\.zarr\.partial/store/|/plots/")
MOST_PER_KIND = 2  # of like operations, such as those on the arrays of a cache
RANDOM_TIMES = 12
CHANGING = re.compile(r"[0-9a-f]{32}|\.\w{8}\.partial|\d+")
OVERWRITE = (*BUILD, "--set", "split.seed=1", "--overwrite")
APPEND = (*BUILD, "--set", "data.path=[table.parquet, more.parquet]", "--append")


class Work(NamedTuple):
    """A command that is killed, what it finds, and what it must leave in the end."""

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...]  # the command after the kill
    brought: tuple[str, ...]
    reference: Path  # the project in which it was not killed
    differences: Callable[[Path, Path], list[str]]  # of the case's folder and the reference's
    ranks: int = 1


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield a kill before each file operation of each command, and as many at random times."""
    for work in _works(project):
        operations = traced(work.reference, work.words[0]).operations
        for number in _tried(operations, random):
            again = random.randrange(60) if random.random() < 0.3 else None
            what = f"{work.name}: killed before file operation {number}, {operations[number]}"
            what += "" if again is None else f"; the next one before its operation {again}"
            yield Case("kills", what, partial(_killed, work, number, again))
        for _ in range(RANDOM_TIMES):
            share = random.random()
            what = f"{work.name}: killed after {share:.0%} of its time"
            yield Case("kills", what, partial(_killed_at, work, share))
    two = Work("train on two ranks", TRAIN, RESUME, CACHE, _place(project, "two"), _runs, 2)
    needs = partial(_done, two, project)
    for _ in range(20):
        share = random.random()
        what = f"{two.name}: both killed after {share:.0%} of its time"
        yield Case("kills", what, partial(_killed_at, two, share), needs)
    for rank in (0, 1) * 6:
        share = random.uniform(0.3, 0.95)
        what = f"{two.name}: rank {rank} killed after {share:.0%} of its time"
        yield Case("kills", what, partial(_rank_killed, two, rank, share), needs)


def _tried(operations: list[str], random: Random) -> list[int]:
    """Return the operations before which a command is killed: some of each kind."""
    kinds: dict[str, list[int]] = {}
    for number, line in enumerate(operations):
        event, _, path = line.partition(" ")
        inside = SIMILAR.search(path) or "/" not in path  # or what rmtree removes
        kinds.setdefault(event if inside else CHANGING.sub("#", line), []).append(number)
    return sorted(
        number
        for numbers in kinds.values()
        for number in random.sample(numbers, min(MOST_PER_KIND, len(numbers)))
    )


def _works(project: Path) -> Iterator[Work]:
    """Yield the commands; those that did not make the project are done once without a kill."""
    inputs = ("encoder", "table.parquet", "columns.yaml", "small.yaml")
    yield Work("build", BUILD, BUILD, inputs, project, _caches)
    for name, words in (("overwrite", OVERWRITE), ("append", APPEND)):
        work = Work(name, words, words, CACHE, _place(project, name), _caches)
        _done(work, project)
        yield work
    yield Work("train", TRAIN, RESUME, CACHE, project, _runs)
    yield Work("evaluate", EVALUATE, EVALUATE, RUN, project, _metrics)
    yield Work("predict", PREDICT, PREDICT, RUN, project, _predictions)


def _place(project: Path, name: str) -> Path:
    return project.parent / "kills" / name


def _done(work: Work, project: Path) -> None:
    """Do a command without a kill, if that is still to be done."""
    if not work.reference.exists():
        work.reference.mkdir(parents=True)
        scene = Scene(work.reference, project)
        _begin(work, scene)
        call_traced(scene, work.words, _environments(work.ranks))


def _environments(ranks: int) -> list[dict[str, str]]:
    return [{}] if ranks == 1 else two_ranks()


def _killed(work: Work, number: int, again: int | None, scene: Scene) -> Outcome:
    """Kill before a file operation, perhaps the next one too, and go on."""
    before = _begin(work, scene)
    done = scene.call(*work.words, under=Conditions(kill_before=number))
    if done.code == 0:  # it took another way than when its operations were counted
        return judged(done, partial(work.differences, scene.folder, work.reference))
    if again is not None:
        scene.call(*work.again, under=Conditions(kill_before=again))
    return _after(work, scene, before, done)


def _killed_at(work: Work, share: float, scene: Scene) -> Outcome:
    """Kill after a share of the time that the command takes, and go on."""
    before = _begin(work, scene)
    running = scene.start(*work.words, ranks=_environments(work.ranks))
    time.sleep(share * traced(work.reference, work.words[0]).seconds)
    running.signal(signal.SIGKILL)
    return _after(work, scene, before, running.wait())


def _rank_killed(work: Work, rank: int, share: float, scene: Scene) -> Outcome:
    """Kill one of two ranks: the other ends by itself, with one message."""
    before = _begin(work, scene)
    running = scene.start(*work.words, ranks=_environments(work.ranks))
    time.sleep(share * traced(work.reference, work.words[0]).seconds)
    running.signal(signal.SIGKILL, running.pids[rank])
    done = running.wait()
    codes = running.codes
    survivor = Done(done.command, codes[1 - rank], done.out, done.err)
    if done.code is None or survivor.code in (0, None):
        told = Outcome("hang", str(done)) if done.code is None else Outcome("harmless")
    else:
        told = judged(survivor, list)
    return worst(told, _after(work, scene, before, done))


def _begin(work: Work, scene: Scene) -> dict[str, str]:
    """Bring what the command finds, and return the digests of all of it."""
    scene.bring(work.brought)
    in_fork(lambda: more_rows(scene / "more.parquet"))
    return files_below(scene.folder)


def _after(work: Work, scene: Scene, before: dict[str, str], killed: Done) -> Outcome:
    """Go on after the kill, and compare."""
    if work.name in ("overwrite", "append") and not (scene / "cache.zarr.partial").exists():
        old = {name: digest for name, digest in before.items() if name.startswith("cache.zarr/")}
        now = files_below(scene.folder)
        if any(now.get(name) != digest for name, digest in old.items()) and cache_differences(
            scene / "cache.zarr", work.reference / "cache.zarr"
        ):
            return Outcome("lost", f"after the kill ({killed.code}) neither cache is there")
    inputs = {
        name: digest
        for name, digest in before.items()
        if not name.startswith(("cache.zarr", "run/")) or work.words[0] != "build_cache"
    }
    done = scene.call(*work.again, ranks=_environments(work.ranks))
    now = files_below(scene.folder)
    touched = [
        name
        for name, digest in inputs.items()
        if now.get(name) != digest and not name.startswith("run/")
    ]
    if touched:
        return Outcome("lost", f"changed: {', '.join(touched)}")
    return finished(done, partial(work.differences, scene.folder, work.reference))


def _stray(found: Path, wanted: Path) -> list[str]:
    """Return the names that the undisturbed command did not leave at the top."""
    known = {path.name for path in wanted.iterdir()} | {"more.parquet"}
    return [f"stray {path.name}" for path in sorted(found.iterdir()) if path.name not in known]


def _caches(found: Path, wanted: Path) -> list[str]:
    return _stray(found, wanted) + cache_differences(found / "cache.zarr", wanted / "cache.zarr")


def _runs(found: Path, wanted: Path) -> list[str]:
    return _stray(found, wanted) + run_differences(found / "run", wanted / "run")


def _metrics(found: Path, wanted: Path) -> list[str]:
    lines = metrics_differences(found / "run" / "metrics.json", wanted / "run" / "metrics.json")
    return _stray(found, wanted) + lines


def _predictions(found: Path, wanted: Path) -> list[str]:
    lines = prediction_differences(found / "out.parquet", wanted / "out.parquet")
    return _stray(found, wanted) + lines
