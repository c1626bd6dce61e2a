"""Splits: nobody straddles, shares are kept, rotation is cross-validation, and what is unusable is
refused.
"""

import numpy as np
import pytest
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from embedcache.config.split import FoldPlan, SplitConfig
from embedcache.errors import SplitError
from embedcache.split import folds as folds_module
from embedcache.split.folds import NUM_ORDERS, _best_order, compressed, split_of_fold
from embedcache.split.report import split_table, unlabelled
from embedcache.split.tally import SplitTally

TEN = SplitConfig().plan()  # 7 + 2 + 1 of 10


def assign_groups(
    counts: np.ndarray, stratum: np.ndarray, plan: FoldPlan, what: str, strata: tuple[str, ...]
) -> np.ndarray:
    """Return the split of each group."""
    return split_of_fold(folds_module.assign_groups(counts, stratum, plan, what, strata), plan)


def assign_rows(label: np.ndarray, plan: FoldPlan) -> np.ndarray:
    """Return the split of each row."""
    return split_of_fold(folds_module.assign_rows(label, plan), plan)


def cohort(num_groups: int, rows: int, seed: int) -> np.ndarray:
    """Return (negative, positive) counts of groups of equal size, about a quarter positive."""
    positive = np.rint(rows * np.random.default_rng(seed).beta(2.4, 7.6, num_groups)).astype(
        np.int64
    )
    return np.stack([rows - positive, positive], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_sixty_patients_are_assigned_as_specified(seed: int) -> None:
    counts = np.concatenate([cohort(10, 7458, seed), cohort(50, 7458, seed + 100)])
    stratum = np.repeat([1, 0], [10, 50])
    split = assign_groups(
        counts, stratum, SplitConfig(seed=seed).plan(), "group", ("synthetic", "real")
    )
    assert np.bincount(split[:10]).tolist() == [7, 2, 1]
    assert np.bincount(split[10:]).tolist() == [35, 10, 5]


def test_class_rates_are_closer_than_chance_gives() -> None:
    counts = cohort(100, 50, 0)

    def spread(split: np.ndarray) -> float:
        return float(
            np.ptp([counts[split == s, 1].sum() / counts[split == s].sum() for s in range(3)])
        )

    found = assign_groups(counts, np.zeros(100, dtype=int), TEN, "group", ())
    blind = [spread(np.random.default_rng(k).permutation(found)) for k in range(50)]
    assert spread(found) < np.quantile(blind, 0.1)


@examples(cost=4)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=6, max_size=40),
    seed=st.integers(0, 10),
    num_strata=st.integers(1, 2),
)
def test_every_stratum_reaches_every_split(sizes: list[int], seed: int, num_strata: int) -> None:
    rng = np.random.default_rng(seed)
    config = SplitConfig(folds=3, train_folds=1, validation_folds=1, seed=seed).plan()
    stratum = np.arange(len(sizes)) % num_strata
    counts = np.stack([rng.binomial(sizes, 0.7), np.zeros(len(sizes), dtype=int)], axis=1)
    counts[:, 1] = np.array(sizes) - counts[:, 0]
    split = assign_groups(counts, stratum, config, "group", ("a", "b")[:num_strata])
    for value in range(num_strata):
        assert set(split[stratum == value].tolist()) == {0, 1, 2}
    assert (
        split == assign_groups(counts, stratum, config, "group", ("a", "b")[:num_strata])
    ).all(), "the same seed must assign the same"


def test_folds_are_level_though_groups_are_not() -> None:
    sizes = np.rint(20 * np.random.default_rng(0).lognormal(sigma=1.0, size=120)).astype(np.int64)
    shares = []
    for rotation in range(10):
        split = assign_groups(
            sizes[:, None],
            np.zeros(120, dtype=int),
            SplitConfig(rotation=rotation).plan(),
            "group",
            (),
        )
        shares.append(sizes[split == 2].sum() / sizes.sum())
    assert max(shares) - min(shares) < 0.03, "every fold holds about a tenth of the rows"


def test_another_seed_assigns_otherwise() -> None:
    # groups of distinct spread: scikit-learn's own seed would change nothing
    counts = cohort(50, 746, 0)
    splits = [
        assign_groups(
            counts, np.zeros(50, dtype=int), SplitConfig(seed=seed).plan(), "group", ()
        ).tolist()
        for seed in range(4)
    ]
    assert len({tuple(split) for split in splits}) == 4


def test_rotating_over_all_folds_tests_every_group_once() -> None:
    counts = cohort(30, 50, 0)
    splits = [
        assign_groups(counts, np.zeros(30, dtype=int), SplitConfig(rotation=r).plan(), "group", ())
        for r in range(10)
    ]
    assert (sum(split == 2 for split in splits) == 1).all()
    assert (sum(split == 0 for split in splits) == 7).all()


def test_rotating_over_all_folds_tests_every_row_once() -> None:
    label = (np.arange(997) % 4 == 0).astype(np.int16)
    splits = [assign_rows(label, SplitConfig(rotation=r, seed=3).plan()) for r in range(10)]
    assert (sum(split == 2 for split in splits) == 1).all()


@examples(cost=2)
@given(num_rows=st.integers(10, 3000), seed=st.integers(0, 5), rate=st.floats(0, 1))
def test_rows_are_assigned_in_exact_proportions(num_rows: int, seed: int, rate: float) -> None:
    label = (np.random.default_rng(seed).random(num_rows) < rate).astype(np.int16)
    split = assign_rows(label, SplitConfig(seed=seed).plan())
    for value, folds in enumerate((7, 2, 1)):
        assert abs((split == value).sum() - folds * num_rows / 10) <= folds
        for kind in (0, 1):
            assert (
                abs(((split == value) & (label == kind)).sum() - folds * (label == kind).sum() / 10)
                <= folds + 1
            )


def test_rows_are_not_assigned_in_order() -> None:
    split = assign_rows(np.zeros(1000, dtype=np.int16), TEN)
    assert len(set(split[:100].tolist())) == 3
    assert (split != assign_rows(np.zeros(1000, dtype=np.int16), SplitConfig(seed=1).plan())).any()


def test_counts_divided_by_a_common_factor_assign_the_same() -> None:
    counts = 10 * cohort(40, 100, 1)  # every count divisible by ten
    small = compressed(counts, int(counts.sum()) // 10)
    assert (small * 10 == counts).all()
    stratum = np.zeros(40, dtype=int)
    assert (
        assign_groups(counts, stratum, TEN, "group", ())
        == assign_groups(small, stratum, TEN, "group", ())
    ).all()


def test_compression_keeps_every_group_and_bounds_the_sum() -> None:
    counts = np.array([[10_000_000, 1], [3, 0], [0, 2], [9_000_000, 5_000_000]])
    small = compressed(counts, 1000)
    assert (small.sum(1) > 0).all()
    assert small.sum() <= 1000 + len(counts)
    assert compressed(counts, 10**9) is counts


def test_folds_become_splits_in_order() -> None:
    assert split_of_fold(np.arange(10), TEN).tolist() == [0] * 7 + [1] * 2 + [2]
    assert (
        split_of_fold(np.arange(10), SplitConfig(rotation=1).plan()).tolist()
        == [2] + [0] * 7 + [1] * 2
    )


@given(folds=st.integers(3, 12), train=st.integers(1, 10), data=st.data())
def test_splits_of_folds_are_the_plain_comparison(
    folds: int, train: int, data: st.DataObject
) -> None:
    train = min(train, folds - 2)
    rotation = data.draw(st.integers(0, folds - 1))
    validation = data.draw(st.integers(1, folds - train - 1))
    config = SplitConfig(
        folds=folds, train_folds=train, validation_folds=validation, rotation=rotation
    ).plan()
    for fold, split in enumerate(split_of_fold(np.arange(folds), config).tolist()):
        rank = (fold - rotation) % folds
        assert split == (0 if rank < train else 1 if rank < train + validation else 2)


@examples(cost=4)
@given(num_groups=st.integers(3, 30), num_classes=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_order_of_folds_is_the_best_of_random_ones(
    num_groups: int, num_classes: int, seed: int
) -> None:
    """The plain search: of the same orders, the first with the least squared relative distance."""
    config = SplitConfig(folds=3, train_folds=1, validation_folds=1, seed=seed).plan()
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 40, (num_groups, num_classes))
    fold = rng.permutation(np.arange(num_groups) % config.folds)
    in_fold = np.stack([counts[fold == k].sum(0) for k in range(config.folds)])
    total = counts.sum(0)

    def distance(order: np.ndarray) -> float:
        got = [(in_fold / np.maximum(1, total))[order == split].sum(0) for split in range(3)]
        return float(((np.stack(got) / (1 / 3) - (total > 0)) ** 2).sum())

    generator = np.random.default_rng(seed)
    orders = [generator.permutation(config.folds) for _ in range(NUM_ORDERS)]
    expected = min(orders, key=distance)
    np.testing.assert_array_equal(_best_order(counts, fold, config), expected)


def test_too_few_groups_are_refused_with_their_stratum() -> None:
    with pytest.raises(SplitError, match=r"3 groups with real, but split\.folds = 10"):
        assign_groups(
            np.ones((23, 1), dtype=np.int64),
            np.repeat([0, 1], [20, 3]),
            TEN,
            "group",
            ("synthetic", "real"),
        )


def tally(
    split: list[int], group: list[int], string: list[int], targets: list[list[float]]
) -> SplitTally:
    """Return the tally of some rows with one regression and one binary target."""
    result = SplitTally(
        (), max(group) + 1, {"polymer": max(string) + 1}, ("ef", "opt"), (False, True)
    )
    codes, labels = np.array(split, dtype=np.int8), np.array(targets, dtype=np.float32)
    for rows in np.array_split(np.arange(len(split)), 2):
        result.add(
            codes[rows],
            np.full(len(rows), -1, dtype=np.int16),
            np.zeros(len(rows), dtype=int),
            np.array(group)[rows],
            {"polymer": np.array(string)[rows]},
            labels[rows],
        )
    return result


NAN = float("nan")
GOOD = {
    "split": [0, 0, 0, 1, 2],
    "group": [0, 0, 1, 2, 3],
    "string": [0, 1, 0, 1, 0],
    "targets": [[1, 0], [NAN, 1], [2, NAN], [3, 1], [4, 0]],
}


def test_a_sound_split_passes_and_is_counted() -> None:
    counted = tally(**GOOD)
    counted.check("group", None)
    counts = counted.counts()
    assert counts.lines[0].model_dump() == {
        "split": "train",
        "stratum": None,
        "groups": 2,
        "rows": 3,
        "labelled": {"ef": 2, "opt": 2},
        "positive": {"opt": 1},
        "strings": {"polymer": 2},
    }
    assert counts.straddling_groups == 0
    assert counts.unseen_strings == {"polymer": {"validation": 0, "test": 0}}
    assert split_table(counts).splitlines() == [
        "split       stratum  groups  rows   share     opt  polymer strings",
        "train       all           2     3  60.00%  0.5000                2",
        "validation  all           1     1  20.00%  1.0000                1",
        "test        all           1     1  20.00%  0.0000                1",
        "labels in train / validation / test: ef 2 / 1 / 1, opt 2 / 1 / 1",
        "validation has no negative label of 'opt'",
        "test has no positive label of 'opt'",
    ]


def test_counts_survive_the_round_trip_through_json() -> None:
    counts = tally(**GOOD).counts()
    assert type(counts).model_validate_json(counts.model_dump_json()) == counts


@pytest.mark.parametrize(
    ("change", "strategy", "left_out", "message"),
    [
        ({"split": [0, 0, 0, 1, 1]}, "group", None, r"(?s)no row is in test.*another split\.seed"),
        (
            {"group": [0, 0, 1, 1, 3]},
            "column",
            None,
            r"(?s)1 of 4 groups of data.group have rows in more than one split \(B\).*correct the"
            r" column that split\.column names; or take data\.group away",
        ),
        (
            {"split": [0, 0, 0, 1, 1]},
            "column",
            None,
            r"(?s)no row is in test.*correct the column that split\.column names\.$",
        ),
        (
            {},
            "leave_strings_out",
            "polymer",
            "distinct polymer strings have rows in more than one split",
        ),
        (
            {"targets": [[1, 0], [1, 0], [2, NAN], [3, 1], [4, 0]]},
            "group",
            None,
            "only one class of 'opt'",
        ),
        (
            {"targets": [[NAN, 0], [NAN, 1], [NAN, NAN], [3, 1], [4, 0]]},
            "group",
            None,
            "no train row has a label for 'ef'",
        ),
    ],
)
def test_an_unusable_split_is_refused(
    change: dict[str, list], strategy: str, left_out: str | None, message: str
) -> None:
    with pytest.raises(SplitError, match=message):
        tally(**{**GOOD, **change}).check(strategy, left_out, ("A", "B", "C", "D"))


def test_straddling_groups_and_unseen_strings_are_remarked_where_they_are_allowed() -> None:
    counted = tally(**{**GOOD, "group": [0, 0, 1, 1, 3], "string": [0, 0, 0, 1, 0]})
    counted.check("random", None)
    table = split_table(counted.counts())
    assert "1 of 4 groups have rows in more than one split" in table
    assert "1 of 1 distinct polymer strings of validation are not in train" in table


def test_the_report_breaks_down_by_stratum() -> None:
    counted = SplitTally(("no", "yes"), 0, {}, ("ef",), (False,))
    counted.add(
        np.array([0, 0, 1, 2], dtype=np.int8),
        np.full(4, -1, dtype=np.int16),
        np.array([0, 1, 1, 0]),
        np.zeros(4, dtype=int),
        {},
        np.ones((4, 1), dtype=np.float32),
    )
    counts = counted.counts()
    assert [(line.split, line.stratum, line.rows) for line in counts.lines] == [
        ("train", "no", 1),
        ("train", "yes", 1),
        ("validation", "no", 0),
        ("validation", "yes", 1),
        ("test", "no", 1),
        ("test", "yes", 0),
        ("train", None, 2),
        ("validation", None, 1),
        ("test", None, 1),
    ]
    assert len(split_table(counts).splitlines()) == 10
    assert len(split_table(counts, most_lines=5).splitlines()) == 4


def test_labels_that_a_split_lacks_are_remarked() -> None:
    targets = {
        0: [[1.0, 1.0], [2.0, 0.0]],
        1: [[np.nan, 1.0], [np.nan, 1.0]],
        2: [[np.nan, 0.0], [np.nan, np.nan]],
    }
    counted = SplitTally((), 0, {}, ("ef", "opt"), (False, True))
    for split, labels in targets.items():
        none, no_fold = np.zeros(2, dtype=np.int64), np.full(2, -1, dtype=np.int16)
        codes = np.full(2, split, dtype=np.int8)
        counted.add(codes, no_fold, none, none, {}, np.array(labels))
    counted.check("random", None)
    remarks = split_table(counted.counts()).splitlines()[4:]
    assert remarks == [
        "labels in train / validation / test: ef 2 / 0 / 0, opt 2 / 2 / 1",
        "no validation row has a label for 'ef'",
        "validation has no negative label of 'opt'",
        "no test row has a label for 'ef'",
        "test has no positive label of 'opt'",
    ]
    assert unlabelled(counted.counts(), "validation") == ["ef"]
    assert unlabelled(counted.counts(), "train") == []
