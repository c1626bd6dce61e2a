"""Strings and categories without a train row are listed, since nothing was learnt of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

SPLITS: dict[str, dict[str, Any]] = {
    "strings": {"strategy": "leave_strings_out", "folds": 4, "train_folds": None}
    | {"validation_folds": None, "stratify_by": None},
    "random": {"strategy": "random"},
}


@pytest.mark.parametrize("strategy", SPLITS)
def test_what_no_train_row_has_is_listed(
    make_study: Callable, frame_of: Callable, tmp_path: Path, strategy: str
) -> None:
    frame = frame_of(240, 12, 0)
    own = pl.col("smiles").rank("dense").cast(pl.String).alias("kind")  # a category per string
    study = make_study(tmp_path, frame.with_columns(own), categories=[{"column": "kind"}])
    study = study.but(group=None, stratum=None, row_weight=None, split=SPLITS[strategy])
    study.build()
    cache = study.open()
    block, scaling = cache.rows(), cache.scaling
    of_train = block.split == 0
    (spec,) = cache.layout.strings
    ((_, values),) = cache.layout.categories
    for places, num_values, found in (
        (block.string_id[:, 0], spec.num_strings, scaling.untrained_strings.get(spec.name, ())),
        (block.category[:, 0], len(values), scaling.untrained_categories.get("kind", ())),
    ):
        wanted = set(range(num_values)) - set(np.unique(places[of_train]).tolist())
        assert set(found) == wanted
        assert bool(wanted) == (strategy == "strings")
