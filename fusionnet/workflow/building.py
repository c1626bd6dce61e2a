"""Build an experiment's cache, alone or on all ranks: rank 0 does what is done once, all encode."""

from dataclasses import replace

from embedcache.build.decide import Existing, build_cache
from embedcache.build.report import BuildReport
from embedcache.build.vectors import Finished, serve
from embedcache.cache.reader import open_cache
from embedcache.errors import RankError, UserError
from embedcache.ranks import ALONE, Ranks
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.train.fitting import fitted_train
from fusionnet.train.saving import saving_in_words, saving_of_cache


def build_experiment(
    experiment: Experiment, existing: Existing = Existing.KEEP, ranks: Ranks = ALONE
) -> BuildReport:
    """Return what the experiment's cache holds, built unless it is there; see `build_cache`."""
    parts = experiment.data, experiment.targets, experiment.split, experiment.encoder
    return build_cache(*parts, experiment.cache, existing, ranks)


def build_on_ranks(
    config: str, overrides: list[str], existing: Existing, ranks: Ranks
) -> BuildReport | int:
    """Return the report of the build on rank 0, on the others their exit code.

    Raises every error of `load_experiment` and `build_cache` on rank 0 alone, after it told the
    others to end.
    """
    if ranks.rank == 0:
        return _build(config, overrides, existing, ranks)
    try:
        return serve(ranks)
    except RankError:
        return 2  # another rank died: rank 0 says so, or the launcher if it was rank 0


def _build(config: str, overrides: list[str], existing: Existing, ranks: Ranks) -> BuildReport:
    """Return the report of the build, and tell the other ranks how it ended."""
    try:
        experiment = load_experiment(config, overrides)
        report = build_experiment(experiment, existing, ranks)
        report = replace(report, of_training=_of_training(experiment, report))
    except RankError:
        raise  # the others are gone, or notice by themselves
    except UserError:
        ranks.broadcast(Finished(2))
        raise
    ranks.broadcast(Finished(0))
    return report


def _of_training(experiment: Experiment, report: BuildReport) -> str:
    """Return what a training step on the cache will encode instead of what, "" where nothing."""
    num_rows = next(each.rows for each in report.split.lines[::-1] if each.split == "train")
    batch_rows = fitted_train(experiment.train, num_rows).batch_rows
    encoders = [column.encoder or experiment.encoder for column in experiment.data.strings]
    return saving_in_words(saving_of_cache(open_cache(report.path), encoders, batch_rows))
