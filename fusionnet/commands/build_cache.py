"""Build cache.zarr from a table: validate, split, scale, tokenise, encode each string once, write.

python -m jobs.build_cache --config C              build it, or say that it is up to date
python -m jobs.build_cache --config C --append     add the files that `data.path` lists behind
                                                   those that the cache has
torchrun --nproc_per_node 8 -m jobs.build_cache --config C
                                                   many strings: encode them on eight GPUs
                                                   (or `deepspeed --module`, or `srun`)
"""

import argparse
import os
import sys

from embedcache.launcher import rank_environment
from fusionnet.commands.command import config_parser, importing, run_job
from fusionnet.experiment import load_experiment


def main() -> None:
    """Build the cache of a config, or help rank 0 to do so."""
    arguments = parse_arguments()
    if rank_environment(os.environ)["WORLD_SIZE"] == "1":
        load_experiment(arguments.config, arguments.overrides)  # a typo need not wait for torch
    with importing():
        from embedcache.build.decide import Existing
        from embedcache.ranks import joined_ranks
        from fusionnet.workflow.building import build_on_ranks

    existing = Existing[(arguments.existing or "keep").upper()]
    with joined_ranks() as ranks:
        outcome = build_on_ranks(arguments.config, arguments.overrides, existing, ranks)
        if not isinstance(outcome, int):  # rank 0
            print(outcome.summary())
    sys.exit(outcome if isinstance(outcome, int) else 0)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = config_parser(__doc__ or "")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--append",
        dest="existing",
        action="store_const",
        const="append",
        help="add the files of data.path that an existing cache does not have",
    )
    chosen.add_argument(
        "--overwrite",
        dest="existing",
        action="store_const",
        const="overwrite",
        help="replace a cache that was built from something else",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
