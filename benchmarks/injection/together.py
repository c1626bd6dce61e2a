"""Two at once, and signals: two trainings of one folder, a builder under a trainer, two evaluations
or predictions; SIGINT and SIGTERM at any moment.

Each ends well or says why not, and what they leave is the work of one.
"""

import signal
import time
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import NamedTuple

from benchmarks.injection.cases import Case, Outcome, finished, judged, worst
from benchmarks.injection.compare import cache_differences, run_differences
from benchmarks.injection.processes import Done
from benchmarks.injection.results import COMPARED, RESUME
from benchmarks.injection.scene import BUILD, CACHE, EVALUATE, PREDICT, RUN, TRAIN, Scene

INPUTS = ("encoder", "table.parquet", "columns.yaml", "small.yaml")
SPLIT = ("--set", "split.seed=1")
SEED = ("--set", "train.seed=1")
STREAMED = (*TRAIN, "--set", "train.rows=streaming")
SIGNALLED = {signal.SIGINT: (130, -signal.SIGINT), signal.SIGTERM: (143, -signal.SIGTERM)}


class Pair(NamedTuple):
    """Two commands at once, and what must be right in the end."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    brought: tuple[str, ...]
    times: int
    one: bool = False  # whether at most one of them may end well


PAIRS = (
    Pair("two builds", BUILD, BUILD, INPUTS, 6),
    Pair("two builds of other splits", BUILD, (*BUILD, *SPLIT), INPUTS, 4),
    Pair("two trainings", TRAIN, TRAIN, CACHE, 6, one=True),
    Pair("two trainings of other seeds", TRAIN, (*TRAIN, *SEED), CACHE, 6, one=True),
    Pair("two that go on", RESUME, RESUME, CACHE, 4),
    Pair("one that goes on, one that begins anew", RESUME, (*TRAIN, "--overwrite"), RUN, 4),
    Pair("a builder under a trainer", STREAMED, (*BUILD, *SPLIT, "--overwrite"), CACHE, 6),
    Pair("two evaluations", EVALUATE, EVALUATE, RUN, 4),
    Pair("two predictions", PREDICT, PREDICT, RUN, 4),
    Pair("a training under an evaluation", EVALUATE, (*TRAIN, "--overwrite"), RUN, 4),
    Pair("a training under a prediction", PREDICT, (*TRAIN, "--overwrite"), RUN, 4),
)
SIGNALLED_WORKS = (
    (BUILD, BUILD, INPUTS, 1.0),
    (TRAIN, RESUME, CACHE, 3.0),
    (EVALUATE, EVALUATE, RUN, 2.0),
    (PREDICT, PREDICT, RUN, 1.0),
)


def cases(random: Random, project: object) -> Iterator[Case]:
    """Yield pairs with some time between their starts, and signals after some time."""
    for pair in PAIRS:
        for _ in range(pair.times):
            pause = random.choice((0.0, random.uniform(0, 1.5)))
            label = f"{pair.name}, {pause:.1f} s apart"
            yield Case("two at once", label, partial(_play_pair, pair, pause))
    for words, again, brought, longest in SIGNALLED_WORKS:
        for number in SIGNALLED:
            for _ in range(5):
                pause = random.uniform(0.05, longest)
                label = f"{words[0]}: {number.name} after {pause:.2f} s"
                play = partial(_play_signal, words, again, brought, number, pause)
                yield Case("signal", label, play)


def _play_pair(pair: Pair, pause: float, scene: Scene) -> Outcome:
    """Run two commands at once, then the first again, alone."""
    scene.bring(pair.brought)
    running = scene.start(*pair.first)
    time.sleep(pause)
    other = scene.start(*pair.second)
    ends = [running.wait(), other.wait()]
    verdicts = [judged(done, list) for done in ends]
    if all(verdict.verdict == "detected" for verdict in verdicts):
        verdicts.append(Outcome("lost", "neither of the two did its work: " + ends[0].err[-300:]))
    if pair.one and all(done.code == 0 for done in ends):
        verdicts.append(Outcome("wrong", "both say that they trained the one run"))
    return worst(*verdicts, _left(pair, ends, scene))


def _left(pair: Pair, ends: list[Done], scene: Scene) -> Outcome:
    """Return the verdict on what two commands left: it is the work of one that ended well."""
    if pair.second[0] == "build_cache" and pair.first[0] == "train":
        done = scene.call("verify_cache", "cache.zarr")
        return finished(done, list)
    if pair.first[0] == "build_cache":
        plain = ends[0].code == 0 and (ends[1].code != 0 or pair.second is BUILD)
        wanted = scene.finished / "cache.zarr"
        done = scene.call("verify_cache", "cache.zarr")
        compared = partial(cache_differences, scene / "cache.zarr", wanted) if plain else list
        return finished(done, compared)
    done = scene.call(*EVALUATE)
    sound = all("train.seed=1" not in end.command or end.code != 0 for end in ends)
    return finished(done, partial(_same, scene) if sound else list)


def _same(scene: Scene) -> list[str]:
    """Return where the run or its predictions are not those of the sound project."""
    return run_differences(scene / "run", scene.finished / "run")


def _play_signal(
    words: tuple[str, ...],
    again: tuple[str, ...],
    brought: tuple[str, ...],
    number: signal.Signals,
    pause: float,
    scene: Scene,
) -> Outcome:
    """Send a signal, then run the command again."""
    scene.bring(brought)
    running = scene.start(*words)
    time.sleep(pause)
    running.signal(number)
    done = running.wait()
    told = Outcome("detected")
    if done.code == 0:
        told = Outcome("harmless")
    elif done.code not in SIGNALLED[number]:
        told = judged(done, list)
    elif "Traceback" in done.err or (not done.err.strip() and done.code > 0):
        told = Outcome("traceback", f"{done.code}: {done.err[-500:]}")
    then = scene.call(*again)
    return worst(told, finished(then, partial(_results, scene, words)))


def _results(scene: Scene, words: tuple[str, ...]) -> list[str]:
    if words is BUILD:
        return cache_differences(scene / "cache.zarr", scene.finished / "cache.zarr")
    return COMPARED[words[0]](scene, scene.finished)
