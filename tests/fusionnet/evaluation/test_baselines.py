"""Baselines see the train rows alone, know strings only by what the table says, and are as good as
they can be where that is known.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedcache.cache.reader import Cache, open_cache
from fusionnet.evaluation import baselines
from fusionnet.evaluation.baselines import (
    BASELINES,
    BOOSTING,
    STRING_MEAN,
    TRAIN_MEAN,
    beside_a_run,
    string_mean,
    take,
    train_mean,
)
from fusionnet.evaluation.features import fingerprints, numbers, one_hot
from fusionnet.experiment import load_experiment


@pytest.fixture(scope="module")
def cache(tiny_experiment: Path) -> Cache:
    return open_cache(load_experiment(tiny_experiment).cache.path)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boosting grow as far as these small tables need."""
    monkeypatch.setattr(baselines, "MOST_TREES", 60)
    monkeypatch.setattr(baselines, "QUICK_TREES", 20)


def test_means_are_those_of_the_train_rows(cache: Cache) -> None:
    rows = cache.rows()
    train = rows.split == 0
    assert train_mean(rows, 0) == pytest.approx(rows.targets[train, 0].mean(), rel=1e-5)
    predicted = string_mean(rows, 0)
    for pair in np.unique(rows.string_id, axis=0):
        same = (rows.string_id == pair).all(1)
        known = rows.targets[same & train, 0]
        assert predicted[same] == pytest.approx(
            known.mean() if len(known) else rows.targets[train, 0].mean(), rel=1e-5
        )


def test_missing_labels_count_for_nothing(cache: Cache) -> None:
    gappy = [target.name for target in cache.layout.targets].index("aux")
    assert np.isnan(cache.rows().targets[:, gappy]).any()
    for name in (
        "mean of the train rows",
        "mean of the string's train rows",
        "boosting, no strings",
    ):
        assert np.isfinite(BASELINES[name](cache, gappy, 0)).all(), name


def test_features_see_the_same_rows_and_only_strings_that_train(cache: Cache) -> None:
    rows = cache.rows()
    features = one_hot(take(rows, np.flatnonzero(rows.split == 0)))(rows)
    assert features.shape[0] == cache.layout.num_rows
    assert features[rows.split == 0].any(0).all()
    assert (features.sum(1) <= len(cache.layout.strings)).all()
    assert numbers(cache.layout)(rows).shape[1] == rows.numeric.shape[1] + 3
    prints = fingerprints(cache)(rows)
    same = (rows.string_id == rows.string_id[0]).all(1)
    assert (prints[same] == prints[0]).all()
    assert np.isfinite(prints).all()
    assert (np.ptp(prints, axis=0) > 0).all()


def test_boosting_finds_what_the_strings_say(cache: Cache) -> None:
    rows = cache.rows()
    test, target = rows.split == 2, rows.targets[:, 0]
    blind = BASELINES["boosting, no strings"](cache, 0, 0)
    knowing = BASELINES[BOOSTING](cache, 0, 0)
    errors = [
        np.abs(predicted[test, 0] - target[test]).mean()
        for predicted in (train_mean(rows, 0), blind, knowing)
    ]
    assert errors[2] < 0.8 * errors[1] < errors[0]


@pytest.mark.slow
def test_a_binary_target_gets_probabilities(cache: Cache) -> None:
    rows = cache.rows()
    predicted = BASELINES[BOOSTING](cache, 1, 0)
    assert ((predicted > 0) & (predicted < 1)).all()
    test = rows.split == 2
    assert ((predicted[test, 0] > 0.5) == (rows.targets[test, 1] > 0.5)).mean() > 0.75


def test_no_baseline_reads_a_test_label(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_TREES", 10)
    honest = {name: baseline(cache, 0, 0) for name, baseline in BASELINES.items()}
    rows = cache.rows()
    targets = rows.targets.copy()
    targets[rows.split == 2] = 1e6
    monkeypatch.setattr(Cache, "rows", lambda _: replace(rows, targets=targets))
    for name, baseline in BASELINES.items():
        assert (baseline(cache, 0, 0) == honest[name]).all(), name


def test_beside_a_run_the_means_are_those_of_all_rows_and_boosting_is_bounded(
    cache: Cache, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, chosen = cache.rows(), np.arange(7, 300, 3)
    tasks = load_experiment(tiny_experiment).tasks
    monkeypatch.setattr(baselines, "PREDICTED_ROWS", 37)
    whole = beside_a_run(rows, cache.layout, cache.scaling, tasks, chosen, progress=False)
    monkeypatch.setattr(baselines, "QUICK_ROWS", 60)
    part = beside_a_run(rows, cache.layout, cache.scaling, tasks, chosen, progress=False)
    for found in (whole, part):
        assert found.predictions[BOOSTING].keys() == {0, 1}
        assert all(
            guesses.shape == (len(chosen), 1) for guesses in found.predictions[BOOSTING].values()
        )
        for target in range(3):
            for name, all_rows in ((TRAIN_MEAN, train_mean), (STRING_MEAN, string_mean)):
                assert (found.predictions[name][target] == all_rows(rows, target)[chosen]).all()
    assert not np.array_equal(whole.predictions[BOOSTING][0], part.predictions[BOOSTING][0])
    assert "60 of 140 train rows" in part.remark


def test_without_validation_labels_all_trees_are_taken(cache: Cache, tiny_experiment: Path) -> None:
    rows, tasks = cache.rows(), load_experiment(tiny_experiment).tasks
    targets = rows.targets.copy()
    targets[rows.split == 1] = np.nan
    chosen = np.flatnonzero(rows.split == 2)
    found = beside_a_run(
        replace(rows, targets=targets), cache.layout, cache.scaling, tasks, chosen, progress=False
    )
    assert np.isfinite(found.predictions[BOOSTING][0]).all()


def test_a_target_without_train_labels_has_no_baselines(
    cache: Cache, tiny_experiment: Path
) -> None:
    rows, tasks = cache.rows(), load_experiment(tiny_experiment).tasks
    targets = rows.targets.copy()
    targets[rows.split == 0, 0] = np.nan
    unlabelled = replace(rows, targets=targets)
    found = beside_a_run(
        unlabelled, cache.layout, cache.scaling, tasks, np.arange(50), progress=False
    ).predictions
    assert {name: sorted(guesses) for name, guesses in found.items()} == {
        TRAIN_MEAN: [1, 2],
        STRING_MEAN: [1, 2],
        BOOSTING: [1],
    }
