"""The cache of an experiment, checked to be the one that its config describes."""

from embedcache.build.identity import differs_in_rotation, has_states, wanted_identity
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import StaleCacheError
from fusionnet.experiment import Experiment


def open_checked_cache(experiment: Experiment, config_path: str) -> Cache:
    """Return the experiment's cache, refusing one that was built from something else.

    A cache that was built with another rotation serves as well.

    The table may be absent, as on a cluster that was sent the cache alone; then only the table's
    digest goes unchecked.
    """
    cache = open_cache(experiment.cache.path)
    wanted = wanted_identity(
        experiment.data,
        experiment.targets,
        experiment.split,
        experiment.encoder,
        known_files=cache.identity.files,
        known_tables=cache.identity.entries,
    )
    different = wanted.difference(cache.identity)
    if differs_in_rotation(cache, wanted):
        # not at the top: most trainings need neither polars nor scikit-learn
        from embedcache.build.rotation import rotated

        cache = rotated(cache, experiment.split)
    elif different:
        listed = "\n".join(f"  - {line}" for line in different)
        raise StaleCacheError(
            f"{experiment.cache.path} was not built from what this run asks for (run ->"
            f" cache):\n{listed}\nrebuild it with: embedcache build --config"
            f" {config_path} --overwrite"
        )
    if not has_states(cache, experiment.data, experiment.encoder):
        raise StaleCacheError(
            f"{experiment.cache.path} does not hold the hidden states that enter layer"
            f" {experiment.encoder.lora.first_layer}, which mode prefix reads; add them with:"
            f" embedcache build --config {config_path}"
        )
    return cache
