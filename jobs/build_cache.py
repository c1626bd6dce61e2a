"""Build cache.zarr from a table: validate, split, scale, tokenise, encode each distinct string once, write."""

from embedcache.build import build_cache
from jobs.command import config_parser, run_job
from jobs.experiment import experiment_of


def main() -> None:
    """Build the cache of a config, or say that it is up to date."""
    parser = config_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that was built from something else")
    arguments = parser.parse_args()
    experiment = experiment_of(arguments)
    report = build_cache(experiment.data, experiment.targets, experiment.split, experiment.encoder, experiment.cache, overwrite=arguments.overwrite)
    print(report.summary())


if __name__ == "__main__":
    run_job(main)
