"""Labels that name classes, and weights of rows: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.cache.reader import Cache
from embedcache.errors import SplitError, TableError

PHASES = ["rubber", "glass", "liquid"]


def labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with classes in words, a few of them missing, grades, and weights."""
    number = np.arange(len(frame))
    return frame.with_columns(
        phase=pl.Series([None if k % 11 == 0 else PHASES[k % 3] for k in number.tolist()]),
        grade=pl.Series(number % 4 + 8),
        answer=pl.Series(["yes" if k % 5 == 0 else "no" for k in number.tolist()]),
        sign=pl.Series(np.where(number % 7 == 0, 1.0, -1.0)),
        weight=pl.Series(number / 10),
    )


def make(
    make_study: Callable,
    folder: Path,
    frame: pl.DataFrame,
    targets: list[dict[str, Any]],
    file: str = "table.parquet",
    **data: Any,
) -> Any:
    """Return a study of these targets, none of which is shared among the splits."""
    study = make_study(folder, frame, file, targets=targets, **data)
    return study.but(split={"stratify_by": None})


def built(study: Any) -> Cache:
    study.build()
    return study.open()


@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
def test_classes_are_codes_in_the_order_of_their_names(
    file: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    targets = [
        {"name": "phase", "column": "phase", "kind": "multiclass"},
        {"name": "grade", "column": "grade", "kind": "ordinal"},
        {"name": "answer", "column": "answer", "kind": "binary", "classes": ["no", "yes"]},
        {"name": "sign", "column": "sign", "kind": "binary", "classes": [-1, 1]},
        {"name": "known", "column": "phase2", "kind": "multiclass", "optional": True},
    ]
    frame = labelled(frame_of())
    study = make(make_study, tmp_path, frame, targets, file, row_weight={"column": "weight"})
    cache = built(study)
    names = {target.name: target.classes for target in cache.layout.targets}
    assert names["phase"] == ("glass", "liquid", "rubber")
    assert names["grade"] == ("8", "9", "10", "11")
    assert cache.layout.absent_targets == ("known",)
    rows, number = cache.rows(), np.arange(240)
    phase = np.array([names["phase"].index(PHASES[k % 3]) for k in number], dtype=np.float32)
    np.testing.assert_array_equal(rows.targets[:, 0], np.where(number % 11 == 0, np.nan, phase))
    np.testing.assert_array_equal(rows.targets[:, 1], number % 4)
    np.testing.assert_array_equal(rows.targets[:, 2], number % 5 == 0)
    np.testing.assert_array_equal(rows.targets[:, 3], number % 7 == 0)
    np.testing.assert_array_equal(rows.weight, (number / 10).astype(np.float32))
    train = (rows.split == 0) & (number % 11 != 0)
    shares = np.bincount(phase[train].astype(int)) / train.sum()
    assert cache.scaling.class_rates["phase"] == pytest.approx(tuple(shares))


@pytest.mark.slow
def test_an_appended_file_keeps_codes_and_adds_classes_behind(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    targets = [{"name": "phase", "column": "phase", "kind": "multiclass"}]
    first = labelled(frame_of())
    more = labelled(frame_of(seed=1)).with_columns(phase=pl.lit("brittle"))
    study = make(make_study, tmp_path, first, targets)
    before = built(study).rows().targets
    more.write_parquet(tmp_path / "more.parquet")
    study = study.but(path=(study.data.path, str(tmp_path / "more.parquet")))
    study.build(append=True)
    cache = study.open()
    assert cache.layout.targets[0].classes == ("glass", "liquid", "rubber", "brittle")
    np.testing.assert_array_equal(cache.rows().targets[:240], before)
    assert (cache.rows().targets[240:] == 3).all()


@pytest.mark.parametrize(
    ("target", "change", "said"),
    [
        ({"kind": "multiclass"}, {"label": pl.lit("one")}, "all labels belong to one class, 'one'"),
        (
            {"kind": "multiclass", "classes": ["glass", "liquid"]},
            {},
            r"unknown class: 7[0-9] rows; 7[0-9] rows 'rubber'",
        ),
        ({"kind": "ordinal"}, {}, "ordinal, but 'glass' is no number: name all classes"),
        ({"kind": "binary", "classes": ["liquid", "glas"]}, {}, "'glass', did you mean 'glas'"),
        ({"kind": "binary"}, {}, "not a number: .*`classes`"),
        (
            {"kind": "multiclass"},
            {"label": pl.int_range(pl.len()) + 5},
            "240 classes, at most 100 can be told apart",
        ),
    ],
)
def test_what_is_wrong_with_classes_is_said(
    target: dict[str, Any],
    change: dict[str, pl.Expr],
    said: str,
    make_study: Callable,
    frame_of: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedcache.table.classes.MOST_CLASSES", 100)
    frame = labelled(frame_of()).rename({"phase": "label"}).with_columns(**change)
    study = make(make_study, tmp_path, frame, [{"name": "l", "column": "label", **target}])
    with pytest.raises(TableError, match=said):
        study.build()


@pytest.mark.slow
def test_a_class_may_be_missing_from_the_train_rows_but_not_all_but_one(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    patient = pl.col("patient").rank("dense")
    targets = [{"name": "l", "column": "label", "kind": "multiclass"}]
    frame = frame_of()
    rare = pl.when(patient == 1).then(pl.lit("rare")).otherwise(pl.lit("usual"))
    study = make(make_study, tmp_path, frame.with_columns(label=rare), targets)
    said = []
    for seed in range(8):  # the rare class is not in train, or there is one patient of it
        try:
            said += study.but(split={"seed": seed}).build(overwrite=True).remarks
        except SplitError as error:
            said.append(str(error))
    assert any("only one class of 'l'" in line for line in said)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (pl.lit(-1.0), r"row_weight column 'weight': not between 0 and 1,000,000: 240 rows"),
        (pl.lit(None, dtype=pl.Float64), "row_weight column 'weight': null or NaN: 240 rows"),
        (pl.lit(0.0), "row_weight column 'weight': no row weighs more than 0"),
        (pl.lit("heavy"), "row_weight column 'weight' has type String, expected numbers"),
    ],
)
def test_what_is_no_weight_is_refused(
    weights: pl.Expr, said: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(weight=weights)
    study = make_study(tmp_path, frame, row_weight={"column": "weight"})
    with pytest.raises(TableError, match=said):
        study.build()


def test_a_class_that_may_stand_for_a_missing_label_is_remarked(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = labelled(frame_of()).with_columns(phase=pl.col("phase").replace("glass", "N/A"))
    targets = [{"name": "phase", "column": "phase", "kind": "multiclass"}]
    remarks = make(make_study, tmp_path, frame, targets).build().remarks
    assert any("target column 'phase' has the value 'N/A'" in line for line in remarks)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "group"])
def test_splits_have_the_same_shares_of_several_classes(
    strategy: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of(num_rows=1200, num_groups=120)
    patient = pl.col("patient").rank("dense").cast(pl.Int64)
    of_string = pl.col("smiles").rank("dense").cast(pl.Int64)
    key = of_string if strategy == "leave_strings_out" else patient
    phase = (
        pl.when(key % 10 == 0)
        .then(pl.lit("rare"))
        .otherwise(pl.lit("usual") + (key % 2).cast(pl.String))
    )
    phase = pl.when(key % 7 != 6).then(phase)
    targets = [{"name": "phase", "column": "phase", "kind": "multiclass"}]
    study = make(make_study, tmp_path, frame.with_columns(phase=phase), targets)
    cache = built(study.but(split={"strategy": strategy, "stratify_by": "phase"}, stratum=None))
    rows = cache.rows()
    labels = np.nan_to_num(rows.targets[:, 0], nan=3).astype(int)
    counts = np.array([np.bincount(labels[rows.split == s], minlength=4) for s in range(3)])
    shares = counts / counts.sum(0)
    wanted = np.array([0.5, 0.25, 0.25])[:, None]  # 2, 1 and 1 of 4 folds
    allowed = {"random": 0.02, "group": 0.12}[strategy]
    assert np.abs(shares - wanted)[:, counts.sum(0) > 0].max() <= allowed
