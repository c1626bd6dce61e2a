"""Build the cache of a config on all ranks: rank 0 does what is done once, all encode."""

from embedcache.build.decide import Existing, build_cache
from embedcache.build.report import BuildReport
from embedcache.build.vectors import Finished, serve
from embedcache.errors import RankError, UserError
from embedcache.ranks import Ranks
from fusionnet.experiment import load_experiment


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
        report = build_cache(
            experiment.data,
            experiment.targets,
            experiment.split,
            experiment.encoder,
            experiment.cache,
            existing,
            ranks,
        )
    except RankError:
        raise  # the others are gone, or notice by themselves
    except UserError:
        ranks.broadcast(Finished(2))
        raise
    ranks.broadcast(Finished(0))
    return report
