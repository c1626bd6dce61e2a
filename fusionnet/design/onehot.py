"""Sets of columns of which exactly one is 1, found in a table."""

import numpy as np
from jaxtyping import Bool

MOST_STEPS = 100_000  # of the search; tables have a handful of such columns


def one_hot_sets(rows: Bool[np.ndarray, "N C"]) -> list[tuple[int, ...]]:
    """Return sets of two or more columns of which exactly one is true in each row.

    No column is in two of them; among equal columns the first counts. None could have one column
    more, but for columns that are never true.
    """
    found: list[tuple[int, ...]] = []
    patterns = np.unique(rows, axis=0)
    free = [c for c in range(rows.shape[1]) if patterns[:, c].any() and not patterns[:, c].all()]
    for first in list(free):
        if first not in free:
            continue
        own = _completed(patterns, first, [c for c in free if c > first])
        if own:
            found.append(own)
            free = [c for c in free if c not in own]
    return found


def _completed(
    patterns: Bool[np.ndarray, "N C"], first: int, others: list[int]
) -> tuple[int, ...] | None:
    """Return the set that begins with a column, None where there is none.

    Depth first: each step covers the first pattern in which no chosen column is true.
    """
    open_ends: list[tuple[int, ...]] = [(first,)]
    for _ in range(MOST_STEPS):
        if not open_ends:
            return None
        chosen = open_ends.pop()
        covered = patterns[:, chosen].any(1)
        if covered.all():
            return tuple(sorted(chosen))
        wanted = patterns[np.flatnonzero(~covered)[0]]
        fits = [c for c in others if wanted[c] and not (patterns[:, c] & covered).any()]
        open_ends += [(*chosen, c) for c in reversed(fits)]
    return None
