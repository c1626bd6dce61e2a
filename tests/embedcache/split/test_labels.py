"""Labels that a split or a fold lacks are remarked by name; train rows of one class are refused."""

import numpy as np
import pytest

from embedcache.build.files import NO_ROWS
from embedcache.config.targets import TargetColumn
from embedcache.errors import SplitError
from embedcache.split.report import split_table
from embedcache.split.tally import SplitTally

NAN = float("nan")
GRADE = TargetColumn(name="grade", column="g", kind="multiclass", classes=("low", "mid", "high"))
EF = TargetColumn(name="ef", column="e")
OPT = TargetColumn(name="opt", column="o", kind="binary")


def tally(
    split: list[int],
    fold: list[int],
    targets: list[list[float]],
    columns: tuple[TargetColumn, ...] = (EF, OPT, GRADE),
) -> SplitTally:
    """Return the tally of rows in a few folds, counted in two blocks."""
    result = NO_ROWS.grown((), 0, {}, columns, 3 if fold else 0)
    codes, labels = np.array(split, dtype=np.int8), np.array(targets, dtype=np.float32)
    folds = np.array(fold or [-1] * len(split), dtype=np.int16)
    none = np.zeros(len(split), dtype=int)
    for rows in np.array_split(np.arange(len(split)), 2):
        result.add(codes[rows], folds[rows], none[rows], none[rows], {}, labels[rows])
    return result


ROWS = [[1, 0, 0], [2, 1, 1], [3, 1, 0], [NAN, NAN, 1], [5, 0, 1], [6, 0, 2]]


def test_classes_and_folds_without_labels_are_named() -> None:
    counted = tally([0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2], ROWS)
    counted.check("random", None)
    assert split_table(counted.counts()).splitlines()[-4:] == [
        "train has no label of class 'high' of 'grade'; the model cannot learn that",
        "validation has no label of class 'low', 'high' of 'grade'",
        "test has no label of class 'low', 'mid' of 'grade'",
        "cross-validation would lack metrics: no positive label of 'opt' in fold 1, 2; 'low'"
        " label of 'grade' in fold 1, 2; 'mid' label of 'grade' in fold 2; 'high' label of 'grade'"
        " in fold 0, 1",
    ]


def test_nothing_is_said_of_folds_where_there_are_none_or_of_labels_that_nobody_has() -> None:
    counts = tally([0, 0, 0, 0, 1, 2], [], ROWS).counts()
    assert counts.folds_without == {}
    empty = [[1.0, 1.0, NAN]] * 6
    assert tally([0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2], empty).counts().missing_classes == {}


def test_rows_in_no_split_count_for_nothing() -> None:
    counts = tally([0, 0, 0, 0, 1, -1], [0, 0, 0, 0, 1, 2], ROWS).counts()
    assert counts.num_unused == 1
    assert counts.missing_classes["grade"]["train"] == ["'high'"]
    assert "test" not in counts.missing_classes["grade"]


def test_more_files_add_classes_and_targets() -> None:
    fewer = GRADE.model_copy(update={"classes": ("low", "mid")})
    first = tally([0, 0], [0, 1], [[0.0], [1.0]], (fewer,))
    grown = first.grown((), 0, {}, (EF, GRADE), 3)
    none = np.zeros(1, dtype=int)
    labels = np.array([[1.0, 2.0]], dtype=np.float32)
    grown.add(np.array([2], np.int8), np.array([2], np.int16), none, none, {}, labels)
    assert grown.counts().missing_classes["grade"]["train"] == ["'high'"]
    assert grown.counts().folds_without["'low' label of 'grade'"] == [1, 2]


def test_train_rows_of_one_class_of_several_are_refused() -> None:
    rows = [[1.0, 1.0, 2.0], [1.0, 0.0, 2.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    with pytest.raises(SplitError, match=r"the train rows hold only one class of 'grade', 'high'"):
        tally([0, 0, 1, 2], [0, 0, 1, 2], rows).check("random", None)
