"""The features of many strings, computed in several processes.

RDKit takes some 20 ms for the descriptors of a molecule and holds the interpreter meanwhile, so
threads would not help. joblib's processes import this package and never the user's script again,
which `multiprocessing` would do, and which a script without `if __name__ == "__main__"` does not
survive.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor

import joblib
import numpy as np
from jaxtyping import Float32

from embedcache.config.features import FeatureKind
from embedcache.errors import CacheError
from embedcache.features.chemistry import features_of

CHUNK = 32  # strings that a process computes at a time
FEWEST = 128  # strings for which other processes are worth their start, about two seconds of CPU
IDLE_S = 1  # after which a process ends that has nothing to do


def computed_chunks(
    texts: Sequence[str], kind: str, feature: FeatureKind
) -> Iterator[tuple[list[str], Float32[np.ndarray, "S K"]]]:
    """Yield consecutive strings and a feature of theirs (see `features_of`), chunk by chunk."""
    chunks = [list(texts[first : first + CHUNK]) for first in range(0, len(texts), CHUNK)]
    num_processes = joblib.cpu_count() if len(texts) >= FEWEST else 1
    if num_processes == 1:
        for chunk in chunks:
            yield chunk, features_of(chunk, kind, feature)
        return
    processes = joblib.Parallel(
        n_jobs=num_processes, return_as="generator", idle_worker_timeout=IDLE_S
    )
    compute = joblib.delayed(features_of)
    try:
        found = processes(compute(chunk, kind, feature) for chunk in chunks)
        yield from zip(chunks, found, strict=True)
    except BrokenExecutor:
        raise CacheError(
            "a process that computed features of strings was killed; is there enough memory? Run"
            " the same command again: it goes on where it was"
        ) from None
