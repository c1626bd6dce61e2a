"""Build cache.zarr from a table: validate, split, scale, tokenise, encode each distinct string
once, write.

python -m jobs.build_cache --config C                                  build it, or say that it is
up to date python -m jobs.build_cache --config C --append                         add the files that
`data.path` lists behind those that the cache has torchrun --nproc_per_node 8 -m jobs.build_cache
--config C             many strings: encode them on eight GPUs (or `deepspeed --module`)
"""

import sys

from embedcache.build.decide import Existing, build_cache
from embedcache.build.report import BuildReport
from embedcache.build.vectors import Finished, serve
from embedcache.errors import RankError, UserError
from embedcache.ranks import Ranks, joined_ranks
from fusionnet.commands.command import config_parser
from fusionnet.experiment import load_experiment


def main() -> None:
    """Build the cache of a config, or help rank 0 to do so."""
    parser = config_parser(__doc__)
    chosen = parser.add_mutually_exclusive_group()
    add = {"dest": "existing", "action": "store_const"}
    chosen.add_argument(
        "--append",
        const=Existing.APPEND,
        help="add the files of data.path that an existing cache does not have",
        **add,
    )
    chosen.add_argument(
        "--overwrite",
        const=Existing.OVERWRITE,
        help="replace a cache that was built from something else",
        **add,
    )
    parser.add_argument(
        "--local_rank",
        type=int,
        default=None,
        help="set by the deepspeed launcher; the environment is used instead",
    )
    arguments = parser.parse_args()
    with joined_ranks() as ranks:
        if ranks.rank == 0:
            print(
                _build(
                    arguments.config,
                    arguments.overrides,
                    arguments.existing or Existing.KEEP,
                    ranks,
                ).summary()
            )
        exit_code = 0 if ranks.rank == 0 else _serve(ranks)
    sys.exit(exit_code)


def _serve(ranks: Ranks) -> int:
    """Return the exit code of a rank that helps; where another rank died, it is rank 0 that says
    so, or the launcher if it was rank 0.
    """
    try:
        return serve(ranks)
    except RankError:
        return 2


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
