"""A cache serves all rotations of its folds: each is the cache that is built with it."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.build.report import split_counts
from embedcache.build.rotation import left_out_in_turn, rotated
from embedcache.cache.identity import LEFT_OUT
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


@pytest.mark.slow
def test_each_part_is_left_out_once_and_no_test_row_is_read(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(240, 12, 0), group="patient", stratum=None)
    study = study.but(split={"folds": 6, "train_folds": 3, "validation_folds": 2})
    study.build()
    base = study.open()
    rows = base.rows()
    views = left_out_in_turn(base, study.split, 2)
    assert [view.identity.entries[LEFT_OUT] for view in views] == ["0, 1, 2", "3, 4"]
    parts = [view.rows().split for view in views]
    for view, split in zip(views, parts, strict=True):
        assert (split[rows.split == 2] == 2).all(), "test rows test in every view"
        assert set(rows.group[split == 1]).isdisjoint(rows.group[split == 0])
        of_train = np.nanmean(rows.targets[split == 0], axis=0)
        assert view.scaling.target_mean[0] == pytest.approx(of_train[0], rel=1e-6)
        assert split_counts(view).lines[-3].rows == (split == 0).sum()
    assert ((parts[0] == 1).astype(int) + (parts[1] == 1) == (rows.split != 2)).all()


@pytest.mark.parametrize(
    ("split", "number", "message"),
    [
        ({"strategy": "column", "column": "fold"}, 2, r"no folds to leave out .*strategy folds"),
        ({"strategy": "time", "column": "when", "folds": 6}, 2, "ordered in time"),
        ({"folds": 6, "train_folds": 3, "validation_folds": 2}, 6, "5 folds train or validate"),
    ],
)
def test_what_cannot_be_left_out_in_turn_is_refused(
    built_study: Any, split: dict[str, Any], number: int, message: str
) -> None:
    own = built_study.split.model_copy(update={"train_folds": None, "validation_folds": None})
    with pytest.raises(SplitError, match=message):
        left_out_in_turn(built_study.open(), own.model_copy(update=split), number)
