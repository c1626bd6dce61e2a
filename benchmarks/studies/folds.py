"""k-fold cross-validation over one cache against a build and a training per fold, in one process.

Both do the same work per fold: train, evaluate on the fold's test rows. Apart from that, the first
builds one cache and takes it in k rotations; the second builds k caches, each in a place of its
own, so that every string is encoded k times; the third builds them over each other, so that vectors
are taken over. Metrics must agree to 1e-6 before times are told. Rounds are in turns. Nothing is
published but by hand, in results/LOG.md:

    python -m benchmarks.studies.folds --config CONFIG [--set KEY=VALUE] [--rounds 3]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.publish import parser, tell
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from embedcache.build.decide import Existing
from embedcache.cache.reader import open_cache
from embedcache.errors import UserError
from fusionnet.commands.command import run_job
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.trained.run import load_run
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.cross_validating import cross_validate
from fusionnet.workflow.training import train_experiment

TOLERANCE = 1e-6
ONE_CACHE, OWN_CACHES, REBUILT = "one cache", "a cache per fold", "one path, built anew per fold"


def main(words: list[str]) -> None:
    """Measure all three ways and print seconds and ratios; nothing is written."""
    options = parser("folds", __doc__ or "")
    options.add_argument("--config", required=True, help="an experiment with folds")
    options.add_argument("--set", action="append", default=[], dest="overrides")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args(words)
    experiment = load_experiment(arguments.config, arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(experiment, Path(folder))
        turns = {ONE_CACHE: ways.one_cache, OWN_CACHES: ways.own_caches, REBUILT: ways.rebuilt}
        seconds = interleaved(turns, 1 if arguments.quick else arguments.rounds, tell)
    for name, measured in (("wall", seconds), ("CPU", ways.cpu_seconds)):
        for way, found in measured.items():
            ratio = paired_ratio(found, measured[ONE_CACHE])
            tell(f"{way}: {_shown(spread(found))} {name} s, {_shown(ratio)} times one cache's")
    tell(f"{stamp()}")


class Ways:
    """The three ways, each of which returns its seconds; their metrics are compared."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder, self._round = experiment, folder, 0
        self._metrics: list[dict[str, Any]] = []
        self.cpu_seconds: dict[str, list[float]] = {}

    def one_cache(self) -> float:
        """Cross-validate."""
        own = self._placed("cache.zarr", "runs")

        def work() -> list[dict[str, Any]]:
            found = cross_validate(own, with_baselines=False, verbose=False)
            return [dict(fold.metrics) for fold in found.folds]

        return self._timed(ONE_CACHE, work)

    def own_caches(self) -> float:
        """Build, train and evaluate for each fold, each cache in a place of its own."""
        return self._timed(OWN_CACHES, lambda: self._each(lambda number: f"{number}.zarr"))

    def rebuilt(self) -> float:
        """Build, train and evaluate for each fold, each cache over the one before."""
        return self._timed(REBUILT, lambda: self._each(lambda _: "cache.zarr"))

    def _each(self, place: Callable[[int], str]) -> list[dict[str, Any]]:
        plan, found = self._experiment.split.plan(), []
        for rotation in plan.rotations:
            own = self._placed(place(rotation), f"run{rotation}")
            split = own.split.model_copy(update={"rotation": rotation})
            own = own.model_copy(update={"split": split})
            build_experiment(own, Existing.OVERWRITE)
            train_experiment(own, "config", verbose=False)
            run, cache = load_run(own.run.dir), open_cache(own.cache.path)
            evaluated = evaluate_run(run, cache, "test", progress=False, with_baselines=False)
            found.append(dict(evaluated.metrics))
        return found

    def _placed(self, cache: str, run: str) -> Experiment:
        """Return the experiment with its cache and run in this round's folder."""
        here = self._folder / str(self._round)
        places = {
            "cache": self._experiment.cache.model_copy(update={"path": str(here / cache)}),
            "run": self._experiment.run.model_copy(update={"dir": str(here / run)}),
        }
        return self._experiment.model_copy(update=places)

    def _timed(self, way: str, work: Callable[[], list[dict[str, Any]]]) -> float:
        self._round += 1
        started, cpu_started = time.perf_counter(), time.process_time()
        metrics = work()
        seconds = time.perf_counter() - started
        self.cpu_seconds.setdefault(way, []).append(time.process_time() - cpu_started)
        self._metrics = self._metrics or metrics
        for mine, theirs in zip(metrics, self._metrics, strict=True):
            for column, values in mine.items():
                for metric, value in values.items():
                    other = theirs[column][metric]
                    if abs(value - other) > TOLERANCE * max(1, abs(other)):
                        raise UserError(f"{column} {metric}: {value} and {other} in two ways")
        return seconds


def _shown(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['p20']:.2f} to {found['p80']:.2f})"


if __name__ == "__main__":
    run_job(lambda: main(sys.argv[1:]))
