"""Features of strings that a trained run has never seen: computed, or found in the user's table.

Those that the run was trained on have theirs in the checkpoint, scaled, behind their vectors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.cache.layout import FeatureSet
from embedcache.config.columns import StringColumn
from embedcache.config.features import FeatureKind, FeatureTable
from embedcache.errors import RunError
from embedcache.features.computing import computed_chunks
from embedcache.features.origin import computed_origin
from embedcache.features.own import OwnTable, OwnTables, refuse_lacking
from fusionnet.trained.run import TrainedRun


def without_features(run: TrainedRun, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
    """Return those new strings of a column that have no features, with the reason."""
    return own_tables(run).unreadable(column, texts)


def own_tables(run: TrainedRun) -> OwnTables:
    """Return the users' tables that the run's config names, as they are now."""
    if run.memory.tables is None:
        run.memory.tables = OwnTables(run.data)
    found: OwnTables = run.memory.tables
    return found


def features_of_new(
    run: TrainedRun, column: StringColumn, texts: Sequence[str]
) -> Float[Tensor, "U K"]:
    """Return the features of new strings, scaled as in training, on the CPU.

    Raises RunError where they would be others than in training, TableError for a string that the
    user's table lacks, or where there is no such table any more.
    """
    own, spec = own_tables(run), run.layout.strings_of(column.name)
    refuse_lacking(own, column, texts)
    tables = iter(own.of(column))
    parts = []
    for feature, wanted in zip(column.features, spec.features, strict=True):
        if isinstance(feature, FeatureTable):
            table = next(tables)
            _check_columns(run, table, wanted)
            parts.append(table.of(texts))
        else:
            parts.append(_computed(run, column, feature, wanted, texts))
    raw = torch.from_numpy(np.concatenate(parts, axis=1))
    return run.scaling.string_features[column.name].apply(raw)


def _computed(
    run: TrainedRun,
    column: StringColumn,
    feature: FeatureKind,
    wanted: FeatureSet,
    texts: Sequence[str],
) -> Float[np.ndarray, "U K"]:
    if wanted.origin != computed_origin():
        raise RunError(
            f"run {run.folder} was trained with features of {wanted.origin}, and this is"
            f" {computed_origin()}, which may compute others: install that one to predict new"
            f" '{column.name}' strings, e.g. {texts[0]!r:.120}; strings that the run was trained on"
            " need none"
        )
    return np.concatenate([values for _, values in computed_chunks(texts, column.kind, feature)])


def _check_columns(run: TrainedRun, table: OwnTable, wanted: FeatureSet) -> None:
    """Raise RunError unless a table has the columns that it had in training."""
    if tuple(f"{wanted.name}: {each}" for each in table.columns) != wanted.columns:
        raise RunError(
            f"{table.config.table} has other columns than in the training of {run.folder}:"
            f" {', '.join(table.columns[:8])}; put back"
            f" {', '.join(wanted.columns[:8])}, in this order"
        )
