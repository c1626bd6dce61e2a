"""The oracle: the noise-free outcomes of a synthetic table, the best that any model can reach.

Where it is known, a metric is read against it, since an R2 of 0.9 is poor where the oracle has 0.99
and perfect where the oracle has 0.9.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from embedcache.errors import RunError
from fusionnet.config.tasks import Task
from fusionnet.metrics import Metrics, task_metrics


def read_oracle(
    tasks: Sequence[Task], path: Path, chosen: Int[np.ndarray, " n"], num_rows: int
) -> Float[np.ndarray, "n T"]:
    """Return the noise-free outcomes of n chosen rows, NaN for tasks that the file lacks.

    The file (Parquet or CSV) must have all rows of the table, in its order; raises RunError.
    """
    if not path.is_file():
        raise RunError(f"there is no oracle file {path}")
    try:
        frame = pl.read_csv(path) if path.suffix.lower() == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunError(f"the oracle {path} cannot be read: {error}") from None
    if len(frame) != num_rows:
        raise RunError(
            f"the oracle {path} has {len(frame):,} rows, the cache {num_rows:,}: it belongs to"
            " another table"
        )
    known = [
        number
        for number, task in enumerate(tasks)
        if task.column in frame.columns and not task.has_codes  # its chances are not in a column
    ]
    if not known:
        raise RunError(
            f"the oracle {path} has none of the columns {', '.join(task.column for task in tasks)}"
        )
    best = np.full((len(chosen), len(tasks)), np.nan)
    for number in known:
        best[:, number] = frame[tasks[number].column].cast(pl.Float64).to_numpy()[chosen]
    gaps = [tasks[number].column for number in known if not np.isfinite(best[:, number]).all()]
    if gaps:
        raise RunError(
            f"the oracle {path} lacks values of {', '.join(gaps)}; it must have one for every row"
        )
    return best


def oracle_metrics(
    tasks: Sequence[Task], targets: Float[np.ndarray, "N T"], best: Float[np.ndarray, "N T"]
) -> dict[str, Metrics]:
    """Return the metrics of the noise-free outcomes for the tasks that have them."""
    known = np.flatnonzero(np.isfinite(best).all(0))
    return task_metrics([tasks[int(number)] for number in known], targets[:, known], best[:, known])
