"""Strategies that read the table: its own splits and folds, scaffolds, time. No scaffold and no
time is in two splits, spellings are understood or refused, and rotations leave folds as they are.
"""

import shutil
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from embedcache.cache.layout import RowBlock
from embedcache.config.split import NO_SPLIT, SplitConfig
from embedcache.errors import ConfigError, SplitError, TableError, UserError
from embedcache.schema import parse_config
from embedcache.split.folds import assign_times, split_of_fold
from embedcache.split.scaffold import scaffold, scaffold_groups

FREE = {"folds": None, "train_folds": None, "validation_folds": None, "stratify_by": None}
NUM_ROWS = 60


@pytest.fixture
def split_with(make_study: Callable, tmp_path: Path) -> Callable[..., RowBlock]:
    """Build a cache of rows with a column `by`, and return its rows."""
    strings = ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])c1ccccc1"]

    def build(cells: Any, file: str = "table.parquet", **split: Any) -> RowBlock:
        frame = pl.DataFrame(
            {
                "smiles": [strings[row % 3] for row in range(NUM_ROWS)],
                "by": cells,
                "y": [0.1 * row for row in range(NUM_ROWS)],
            }
        )
        nothing: dict[str, Any] = {"numeric": [], "categories": [], "report_by": []}
        nothing |= {"group": None, "stratum": None, "row_weight": None}
        targets = [{"name": "y", "column": "y"}]
        study = make_study(tmp_path, frame, file, targets, **nothing)
        study = study.but(split={**FREE, "column": "by", **split})
        study.build(overwrite=True)
        return study.open().rows()

    return build


@pytest.mark.slow
@pytest.mark.parametrize("file", ["table.parquet", "table.csv"])
def test_the_tables_own_spellings_of_splits_are_understood(split_with: Callable, file: str) -> None:
    spelled = ["Train", "training", "VAL", "dev", "Hold out", "test"]
    rows = split_with(spelled * 10, file, strategy="column")
    assert rows.split.tolist() == [0, 0, 1, 1, 2, 2] * 10
    assert (rows.fold == -1).all(), "the table has no folds"
    values = {"train": [0, "dev"], "validation": [1], "test": [2]}
    rows = split_with(["0", "1", "2", "dev"] * 15, file, strategy="column", values=values)
    assert rows.split.tolist() == [0, 1, 2, 0] * 15
    rows = split_with([0, 1, 2] * 20, file, strategy="column", values=values)
    assert rows.split.tolist() == [0, 1, 2] * 20


def test_unknown_splits_are_refused_with_what_to_set(split_with: Callable) -> None:
    with pytest.raises(
        TableError,
        match=r"must be one of train, validation, test, tr: 20 rows; 20 rows 'other'; say what they"
        r" stand for, split\.values: \{train: \[\.\.\.\], validation",
    ):
        split_with(["tr", "test", "other"] * 20, strategy="column", values={"train": ["tr"]})
    with pytest.raises(TableError, match=r"the numbers of folds, set split\.strategy: folds"):
        split_with([1, 2, 3] * 20, strategy="column")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["table.parquet", "table.csv"])
def test_fold_numbers_are_folds_in_their_order(split_with: Callable, file: str) -> None:
    numbers = [1.0, 2.0, 3.0, 4.0, 10.0] * 12
    rows = split_with(numbers, file, strategy="folds")
    assert rows.fold.tolist() == [0, 1, 2, 3, 4] * 12, "10 is the last"
    assert rows.split.tolist() == [0, 0, 0, 1, 2] * 12
    rows = split_with(numbers, file, strategy="folds", rotation=1)
    assert rows.split.tolist() == [2, 0, 0, 0, 1] * 12
    rows = split_with(numbers, file, strategy="folds", train_folds=1, validation_folds=2)
    assert rows.split.tolist() == [0, 1, 1, 2, 2] * 12
    rows = split_with(["c", "a", "b"] * 20, file, strategy="folds")
    assert rows.split.tolist() == [2, 0, 1] * 20


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        ([1, 2] * 30, {}, r"column 'by' has 2 folds \(1, 2\); strategy folds needs at least 3"),
        ([1, 2, 3] * 20, {"folds": 5}, r"has 3 folds \(1, 2, 3\), but split\.folds = 5; leave"),
        ([1, 2, 3] * 20, {"train_folds": 2}, r"with 3 folds: .* 2 \+ 1 >= 3"),
        ([1, 2, 3] * 20, {"rotation": 3}, r"which of the 3 folds comes first, 0 to 2, found 3"),
        ([1, 2, None] * 20, {}, r"fold column 'by': null or empty: 20 rows"),
    ],
)
def test_folds_that_cannot_be_are_refused(
    split_with: Callable, values: list[Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        split_with(values, strategy="folds", **change)


DAYS = [date(2020, 1, 1) + timedelta(days=3 * (row * 7 % 20)) for row in range(NUM_ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["table.parquet", "table.csv"])
def test_any_way_to_write_a_time_gives_the_same_splits(split_with: Callable, file: str) -> None:
    numbers = np.array([day.toordinal() for day in DAYS])
    expected = split_with(numbers, file, strategy="time")
    assert np.bincount(expected.split).tolist() == [42, 12, 6]
    moments = [datetime(day.year, day.month, day.day, 12) for day in DAYS]
    zoned = [
        f"{moment.isoformat()}{'Z' if row % 2 else '+00:00'}" for row, moment in enumerate(moments)
    ]
    for values in (
        DAYS,
        moments,
        [day.isoformat() for day in DAYS],
        [f"{day} 12:30" for day in DAYS],
        [f"{moment.isoformat()}.25" for moment in moments],
        zoned,
        [str(number + 0.5) for number in numbers],
    ):
        assert split_with(values, file, strategy="time").split.tolist() == expected.split.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["03/04/2020"] * 60, r"neither a number nor an ISO date \(2024-03-31.*60 rows"),
        (["2020", "2020-01-02"] * 30, r"numbers among dates; write all of them as ISO dates"),
        ([1.0, float("nan"), None] * 20, r"time column 'by': no value: 40 rows"),
        (["2020-01-01", None] * 30, r"no value: 30 rows"),
        ([True, False] * 30, r"there are 2 distinct times, but split\.folds = 10 needs at least"),
        ([[1], [2]] * 30, r"time column 'by' has type List.*expected dates, datetimes, numbers"),
        ([timedelta(1)] * 60, r"time column 'by' has type Duration"),
    ],
)
def test_what_is_no_time_is_refused(split_with: Callable, values: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_with(values, strategy="time")


@given(
    num_rows=st.lists(st.integers(1, 40), min_size=10, max_size=60),
    rotation=st.integers(0, 6),
)
def test_no_time_is_cut_and_what_tests_is_newer_than_what_trains(
    num_rows: list[int], rotation: int
) -> None:
    counts, plan = np.array(num_rows), SplitConfig(strategy="time", column="t", rotation=rotation)
    folds = assign_times(counts, plan.plan())
    assert (np.diff(folds) >= 0).all()
    assert folds.max() < 10
    split = split_of_fold(folds, plan.plan())
    order = [0, 1, 2, NO_SPLIT]  # oldest first
    assert (np.diff([order.index(code) for code in split.tolist()]) >= 0).all()
    rows = np.repeat(folds, counts)
    shares = np.bincount(rows, minlength=10) / len(rows)
    assert (np.abs(shares.cumsum() - np.arange(1, 11) / 10) <= counts.max() / len(rows)).all()


@pytest.mark.slow
def test_rotations_over_time_are_an_expanding_window(split_with: Callable) -> None:
    found = [
        split_with(list(range(60)), strategy="time", folds=6, rotation=rotation)
        for rotation in range(4)
    ]
    for rotation, rows in enumerate(found):
        assert (rows.fold == found[0].fold).all()
        expected = [0] * (4 - rotation) + [1, 2] + [NO_SPLIT] * rotation
        assert rows.split.tolist() == np.repeat(expected, 10).tolist()
    with pytest.raises(ConfigError, match=r"how many of the latest folds are left out.*0 to 3"):
        parse_config(
            SplitConfig, {"strategy": "time", "column": "t", "folds": 6, "rotation": 4}, "test"
        )


@pytest.mark.slow
def test_a_table_split_by_time_cannot_be_appended_to(
    make_study: Callable, tmp_path: Path, frame_of: Callable
) -> None:
    study = make_study(tmp_path, frame_of().with_columns(when=pl.int_range(pl.len())))
    study = study.but(split={"strategy": "time", "column": "when", "stratify_by": None})
    study.build()
    shutil.copy(study.data.files[0], tmp_path / "more.parquet")
    both = study.but(path=[study.data.files[0], str(tmp_path / "more.parquet")])
    with pytest.raises(SplitError, match=r"cannot follow other files.*Join the files into one"):
        both.build(append=True)


STYRENE, XYLENE = "[*]CC([*])c1ccccc1", "[*]Cc1ccc(C[*])cc1"


def test_scaffolds_are_those_of_the_endless_chain() -> None:
    assert scaffold("[*]CC[*]") == scaffold("CCO") == scaffold("[*]CCO[*].[Li+]") == ""
    assert scaffold("Cc1ccccc1CC") == "c1ccccc1"
    assert scaffold(STYRENE) == scaffold("[*]CC([*])c1ccc(C)cc1") != scaffold(XYLENE)
    cut_at_oxygen = ["[*]c1ccc(cc1)Oc1ccc([*])cc1", "[*]Oc1ccc(cc1)c1ccc([*])cc1"]
    assert len({scaffold(text) for text in cut_at_oxygen}) == 1
    assert scaffold("[*]C([*])c1ccccc1") != "", "a backbone of one atom"
    assert scaffold(f"{STYRENE}.[Na+]") == scaffold(STYRENE)
    groups = scaffold_groups(["CCO", "CCC", "Cc1ccccc1", "c1ccccc1", "CCO"])
    assert groups.tolist() == [0, 1, 2, 2, 0]


@examples(cost=4)
@given(cut=st.integers(0, 8), backwards=st.booleans())
def test_a_scaffold_does_not_depend_on_the_cut(cut: int, backwards: bool) -> None:
    blocks = ["C", "O", "c1ccc(cc1)", "C(=O)", "N", "C(C)", "C(c1ccccc1)", "C", "C"]
    turned = blocks[cut:] + blocks[:cut]
    if backwards:
        turned = ["C" if block == "C" else block for block in reversed(turned)]
    text = "[*]" + "".join(turned) + "[*]"
    whole = "[*]" + "".join(blocks) + "[*]"
    assert scaffold(text) == scaffold(whole)


@pytest.mark.slow
def test_no_scaffold_is_in_two_splits(make_study: Callable, tmp_path: Path) -> None:
    rings = ["c1ccccc1", "c1ccncc1", "C1CCCC1", "c1ccc2ccccc2c1"]
    texts = [f"[*]CC([*]){'C' * k}{ring}" for ring in rings for k in range(4)]
    texts += [f"[*]{'C' * k}O[*]" for k in range(1, 9)]
    frame = pl.DataFrame({"smiles": texts * 10, "y": np.arange(10.0 * len(texts))})
    nothing: dict[str, Any] = {"numeric": [], "categories": [], "report_by": []}
    nothing |= {"group": None, "stratum": None, "row_weight": None}
    study = make_study(tmp_path, frame, targets=[{"name": "y", "column": "y"}], **nothing)
    tested = []
    for rotation in range(4):
        change = {**FREE, "strategy": "scaffold", "folds": 4, "rotation": rotation}
        study = study.but(split=change)
        study.build(overwrite=True)
        rows, strings = study.open().rows(), study.open().strings("polymer").text
        groups = scaffold_groups(strings)[rows.string_id[:, 0]]
        for group in np.unique(groups):
            assert len(set(rows.split[groups == group].tolist())) == 1
        tested.append(rows.split == 2)
    assert (sum(tested) == 1).all(), "rotations test every row once"
    text = study.but(strings=[{"name": "polymer", "column": "smiles", "kind": "text"}])
    with pytest.raises(ConfigError, match=r"needs a string column .* of kind psmiles or smiles"):
        text.build(overwrite=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "folds"}, "strategy 'folds' needs split.column"),
        ({"strategy": "time"}, "strategy 'time' needs split.column"),
        ({"values": {"train": ["a"]}}, "split.values is what strategy 'column' reads"),
        (
            {"strategy": "column", "column": "c", "values": {"train": ["A"], "test": ["a"]}},
            "split.values has a more than once",
        ),
        ({"folds": 5, "train_folds": 4}, r"must leave a fold to test on: 4 \+ 1 >= 5"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(SplitConfig, values, "test")


def test_unset_shares_follow_from_the_folds() -> None:
    found = {
        folds: SplitConfig(folds=folds)
        .settled()
        .model_dump(include={"train_folds", "validation_folds"})
        for folds in (3, 5, 10, 20)
    }
    assert [tuple(each.values()) for each in found.values()] == [(1, 1), (3, 1), (7, 2), (15, 4)]
    assert SplitConfig(train_folds=8).plan().validation_folds == 1
