"""A cache serves all rotations of its folds: each is the cache that is built with it."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.build.rotation import rotated
from embedcache.cache.layout import RowBlock
from embedcache.errors import SplitError, StaleCacheError

FREE = {"folds": 4, "train_folds": None, "validation_folds": None, "stratify_by": None}
STRATEGIES: dict[str, dict[str, Any]] = {
    "group": {},
    "random": {"strategy": "random"},
    "strings": {**FREE, "strategy": "leave_strings_out"},
    "scaffold": {**FREE, "strategy": "scaffold"},
    "time": {**FREE, "strategy": "time", "column": "when", "folds": 6},
    "folds": {**FREE, "strategy": "folds", "column": "site", "folds": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rotated_cache_is_the_one_that_is_built_so(
    make_study: Callable, frame_of: Callable, tmp_path: Path, strategy: str
) -> None:
    frames = [frame_of(240, 12, 0), frame_of(30, 14, 1), frame_of(90, 30, 2)]  # few and many new
    frames = frames[:1] if strategy == "time" else frames
    paths = []
    for number, frame in enumerate(frames):
        numeric = {"x": pl.col("x") + 1000 * number, "when": (pl.int_range(pl.len()) * 7) % 60}
        paths.append(str(tmp_path / f"{number}.parquet"))
        frame.with_columns(**numeric).write_parquet(paths[-1])
    numeric = [{"column": "x", "if_null": "median"}, {"column": "y", "transform": "quantile"}]
    study = make_study(tmp_path, None, "none.parquet", numeric=numeric).but(path=paths)
    study = study.but(split=STRATEGIES[strategy], group="patient" if strategy == "group" else None)
    study = study.but(stratum=None, row_weight=None) if strategy != "group" else study
    study.build()
    base = study.open()
    for rotation in (1, 2):
        split = study.split.model_copy(update={"rotation": rotation})
        view = rotated(base, split)
        built = study.but(split={"rotation": rotation})
        with pytest.raises(StaleCacheError, match=r"same rows and folds with another rotation"):
            built.build()
        cache = study.cache.model_copy(update={"path": str(tmp_path / f"{rotation}.zarr")})
        built = replace(built, cache=cache)
        built.build()
        wanted = built.open()
        assert view.identity == wanted.identity
        assert view.scaling == wanted.scaling
        assert view.report["split"] == wanted.report["split"]
        for field in fields(RowBlock):
            found = getattr(view.rows(), field.name)
            np.testing.assert_array_equal(found, getattr(wanted.rows(), field.name))


def test_the_tables_own_splits_have_no_rotation(built_study: Any) -> None:
    split = built_study.split.model_copy(update={"strategy": "column", "column": "fold"})
    with pytest.raises(SplitError, match=r"'column' has no rotations.*\(strategy folds\)"):
        rotated(built_study.open(), split)


def test_a_rotation_without_what_training_needs_is_refused(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    fold = pl.Series([1, 2, 3] * 80)
    outcome = pl.when(fold == 1).then(pl.col("outcome"))
    frame = frame_of().with_columns(outcome=outcome, site=fold)
    study = make_study(tmp_path, frame, group=None, stratum=None, row_weight=None)
    study = study.but(split=STRATEGIES["folds"])
    study.build()
    split = study.split.model_copy(update={"rotation": 1})
    with pytest.raises(SplitError, match=r"no train row has a label for 'ef'"):
        rotated(study.open(), split)
