"""What a report shows beside an evaluation: the model itself, more drawings, what it took."""

import time
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from embedcache.cache.reader import open_cache
from fusionnet.evaluation.live import live_section, names_of_strings
from fusionnet.evaluation.ranking import ranking_drawings
from fusionnet.evaluation.report import ShownBeside
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import RunRows
from fusionnet.evaluation.string_map import string_maps
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.trained.run import TrainedRun


def shown_beside(
    run: TrainedRun,
    evaluation: Evaluation,
    rows: RunRows,
    spent_s: dict[str, float],
    explained: Markup,
    with_live: bool = True,
) -> ShownBeside:
    """Return what the report shows beside the evaluation.

    `spent_s` are seconds by phase, `explained` the section on what the run reads. `with_live`: the
    trained run itself is in the page.
    """
    live = Markup()
    if with_live:
        start = time.perf_counter()
        live = live_section(run, evaluation, rows)
        spent_s = spent_s | {"the model in this page": time.perf_counter() - start}
    maps = string_maps(run, rows, names_of_strings(run, rows), _cached_vectors(run, rows))
    drawings = chain(ranking_drawings(run, evaluation), maps)
    return ShownBeside(live, explained, drawings, spent_s, peak_rss_bytes())


def _cached_vectors(run: TrainedRun, rows: RunRows) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Return strings' vectors before fine-tuning, of rows that are those of the run's cache."""
    if run.recipe.mode in ("frozen", "none") or not Path(rows.where).is_dir():
        return {}
    cache = open_cache(rows.where)
    return {
        spec.name: cache.strings(spec.name).embeddings[: spec.num_strings].float().numpy()
        for spec in run.layout.strings
        if spec.width
    }
