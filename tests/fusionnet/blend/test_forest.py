"""A forest predicts what the library predicts that grew it, also of missing values, from its arrays
alone; arrays that are no trees are refused.
"""

from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from jaxtyping import Float

from fusionnet.blend.boosting import (
    BINS_OF_FEATURES,
    KINDS,
    MOST_BYTES,
    ColumnUse,
    TrainRows,
    _grown,
    _grown_by_parts,
    _Kind,
    grown_by,
    tree_plan,
)
from fusionnet.blend.dumped import forest_of
from fusionnet.blend.forest import Forest, joined
from fusionnet.config.blend import BlendConfig
from fusionnet.config.tasks import Task

ROWS, COLUMNS = 300, 5
RNG = np.random.default_rng(0)
USE = ColumnUse(COLUMNS)


def grown(
    config: BlendConfig,
    task: Task,
    rows: TrainRows,
    validation: TrainRows,
    use: ColumnUse,
    seed: int,
    num_threads: int,
) -> Forest:
    plan = tree_plan(config, task, rows, validation, use, seed, num_threads)
    return grown_by(plan, config, task, rows, use, seed, num_threads)


def rows_of(
    kind: str, missing: bool, rng: np.random.Generator = RNG
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, " N"]]:
    x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + x[:, 2] + 0.1 * rng.normal(size=ROWS)
    if missing:
        x[rng.random(x.shape) < 0.2] = np.nan
    if kind == "binary":
        y = (y > 0).astype(np.float64)
    elif kind == "multiclass":
        y = np.digitize(y, [-0.5, 0.5]).astype(np.float64)
    return x, y


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_a_forest_predicts_what_the_library_predicts(kind: str, missing: bool) -> None:
    x, y = rows_of(kind, missing)
    outputs = 3 if kind == "multiclass" else 1
    parameters: dict[str, Any] = {"objective": kind, "verbosity": -1, "num_threads": 1}
    parameters |= {"num_class": 3} if outputs == 3 else {}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y), 20)
    asked = np.concatenate([x, np.full((1, COLUMNS), np.nan, dtype=np.float32), 1e6 * x[:3]])
    wanted = booster.predict(asked, raw_score=True).reshape(len(asked), outputs)
    found = forest_of(booster, outputs)(torch.from_numpy(asked))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert np.ptp(wanted) > 0.5


def small_forest(seed: int = 0) -> Forest:
    x, y = rows_of("regression", missing=False)
    parameters = {"objective": "regression", "verbosity": -1, "num_threads": 1, "seed": seed}
    return forest_of(lightgbm.train(parameters, lightgbm.Dataset(x, y + seed), 3), 1)


def test_several_forests_are_joined_to_their_weighted_sum() -> None:
    x = torch.from_numpy(RNG.normal(size=(50, COLUMNS)).astype(np.float32))
    forests = [small_forest(seed) for seed in range(3)]
    weights = [0.5, 0.2, 0.3]
    wanted = sum(weight * forest(x) for weight, forest in zip(weights, forests, strict=True))
    torch.testing.assert_close(joined(forests, weights)(x), wanted)


def test_many_rows_are_walked_in_parts_and_none_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(RNG.normal(size=(57, COLUMNS)).astype(np.float32))
    forest = small_forest()
    whole = forest(x)
    monkeypatch.setattr("fusionnet.blend.forest.ROWS_AT_ONCE", 20)
    assert torch.equal(forest(x), whole)
    assert forest(x[:0]).shape == (0, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: {"left": torch.zeros_like(f.left)},  # a walk would never end
        lambda f: {"right": f.right + len(f.right)},
        lambda f: {"column": f.column + 99},
        lambda f: {"value": torch.full_like(f.value, float("nan"))},
        lambda f: {"threshold": f.threshold[1:]},
        lambda f: {"root": f.root - 1},
        lambda f: {"column": f.column.float()},
    ],
)
def test_arrays_that_are_no_trees_are_refused(change: Any) -> None:
    forest = small_forest()
    Forest.of_tensors(forest.tensors(), 1, COLUMNS)
    with pytest.raises(ValueError, match=r"trees|forest"):
        Forest.of_tensors(forest.tensors() | change(forest), 1, COLUMNS)


def train_rows(kind: str, num_parts: int, rng: np.random.Generator = RNG) -> TrainRows:
    x, y = rows_of(kind, missing=False, rng=rng)
    return TrainRows(x, y, np.ones(ROWS), np.arange(ROWS) % num_parts)


def task_of(kind: str) -> Task:
    classes = ("a", "b", "c") if kind == "multiclass" else None
    return Task.model_validate({"name": "y", "column": "y", "kind": kind, "classes": classes})


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
@pytest.mark.parametrize("parts", [1, 3])
def test_grown_trees_learn(kind: str, parts: int) -> None:
    rows, new = train_rows(kind, parts), train_rows(kind, 1)
    config = BlendConfig(parts=parts, most_trees=60)
    forest = grown(config, task_of(kind), rows, new, USE, 0, 1)
    raw = forest(torch.from_numpy(new.x)).numpy()
    if kind == "regression":
        assert (
            np.abs(raw[:, 0] - new.label).mean() < 0.6 * np.abs(new.label - new.label.mean()).mean()
        )
    else:
        chosen = raw.argmax(1) if kind == "multiclass" else (raw[:, 0] > 0)
        assert (chosen == new.label).mean() > 0.75


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_one_label_alone_is_what_is_predicted(kind: str) -> None:
    rows = replace(train_rows(kind, 2), label=np.ones(ROWS))
    raw = grown(BlendConfig(), task_of(kind), rows, rows, USE, 0, 1)(torch.from_numpy(rows.x))
    if kind == "multiclass":
        assert (raw.softmax(1)[:, 1] > 0.99).all()
    elif kind == "binary":
        assert (raw.sigmoid() > 0.99).all()
    else:
        assert (raw == 1).all()


def test_the_same_rows_and_seed_grow_the_same_trees() -> None:
    rows = train_rows("regression", 3)
    config = BlendConfig(parts=3, most_trees=20)
    task = task_of("regression")
    first, second, other = (grown(config, task, rows, rows, USE, seed, 1) for seed in (1, 1, 2))
    pairs = zip(first.tensors().values(), second.tensors().values(), strict=True)
    assert all(torch.equal(one, another) for one, another in pairs)
    assert not torch.equal(first.value, other.value)


# one model at a time, whose threads wait for each other; side by side
@pytest.mark.parametrize("most_bytes", [pytest.param(0, marks=pytest.mark.slow), MOST_BYTES])
@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_threads_change_no_tree(
    kind: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = train_rows(kind, 4, np.random.default_rng(0))
    config = BlendConfig(parts=4, most_trees=30, leaves=(4, 8))
    use = ColumnUse(3, [np.array([0, 1, 2]), np.array([0, 3, 4])])
    task = task_of(kind)
    alone = grown(config, task, rows, rows, use, 0, 1)
    monkeypatch.setattr("fusionnet.blend.boosting.MOST_BYTES", most_bytes)
    threads: list[int] = []
    train = lightgbm.train

    def seen(parameters: dict[str, Any], *rest: Any, **named: Any) -> lightgbm.Booster:
        threads.append(parameters["num_threads"])
        return train(parameters, *rest, **named)

    monkeypatch.setattr("fusionnet.blend.boosting.lightgbm.train", seen)
    found = grown(config, task, rows, rows, use, 0, 2)
    pairs = zip(alone.tensors().values(), found.tensors().values(), strict=True)
    assert all(torch.equal(one, another) for one, another in pairs)
    # models of parts side by side, on a thread each; the last ones on both where one is left
    assert threads[0] == (1 if most_bytes else 2)
    assert set(threads) <= {1, 2}


def test_each_kind_has_its_own_size_and_a_model_for_each_part_left_out() -> None:
    rng, task = np.random.default_rng(0), task_of("regression")
    rows = train_rows("regression", 3, rng)
    config = BlendConfig(parts=3, most_trees=30, leaves=(2, 16), least_rows=2)
    every = np.arange(COLUMNS)
    large = {"objective": "regression", "num_threads": 1, "verbosity": -1, "seed": 0}
    # with 100 rows in a leaf no tree has more than two, whatever its size: the first size is kept
    kinds = [_Kind(large, every), _Kind(large | {"min_data_in_leaf": 100}, every[:3])]
    left_out = [rows.part == number for number in range(3)]
    by_kind = _grown_by_parts(config, task, kinds, rows, left_out, 2)
    assert [[model.leaves for model in models] for models in by_kind] == [[16] * 3, [2] * 3]
    for kind, models in zip(kinds, by_kind, strict=True):
        for part, model in zip(left_out, models, strict=True):
            alone = _grown(config, task, kind, model.leaves, *kind.of(rows).parted(part))
            np.testing.assert_array_equal(model.raw, alone.raw)


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
@pytest.mark.parametrize("useless", [0, 1])
def test_trees_that_predict_nothing_of_parts_left_out_count_nothing(
    kind: str, useless: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = train_rows(kind, 3)
    config, x = BlendConfig(parts=3, most_trees=100, least_rows=3), torch.from_numpy(rows.x)
    kinds: list[dict[str, Any]] = [{}, {}]
    monkeypatch.setattr("fusionnet.blend.boosting.KINDS", kinds)
    alike = grown(config, task_of(kind), rows, rows, USE, 0, 1)(x)
    kinds[useless] = {"learning_rate": 1e-6}
    found = grown(config, task_of(kind), rows, rows, USE, 0, 1)(x)
    assert (found - alike).norm() < 0.1 * (alike - alike.mean(0)).norm()


@pytest.mark.slow
def test_two_kinds_of_trees_predict_rows_left_out_better_than_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, errors = BlendConfig(parts=5, most_trees=200), np.zeros((3, 3))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows, new = train_rows("regression", 5, rng), train_rows("regression", 1, rng)
        for number, kinds in enumerate((KINDS[:1] * 2, KINDS[1:] * 2, KINDS)):
            monkeypatch.setattr("fusionnet.blend.boosting.KINDS", kinds)
            found = grown(config, task_of("regression"), rows, rows, USE, 0, 1)
            raw = found(torch.from_numpy(new.x))[:, 0].numpy()
            errors[seed, number] = np.square(raw - new.label).mean()
    first, second, both = errors.mean(0)
    assert both < 0.98 * min(first, second)


@pytest.mark.parametrize(
    ("parts", "is_additive", "best"), [(1, True, 2), (1, False, 31), (3, False, 31)]
)
def test_trees_have_the_size_that_is_best_for_rows_left_out(
    parts: int, is_additive: bool, best: int
) -> None:
    rng, task = np.random.default_rng(0), task_of("regression")

    def drawn(num_rows: int) -> TrainRows:
        x = rng.normal(size=(num_rows, 4)).astype(np.float32)
        label = x[:, 0] + x[:, 1] if is_additive else 2.0 * x[:, 0] * x[:, 1]
        label = label + rng.normal(size=num_rows)
        return TrainRows(x, label, np.ones(num_rows), np.arange(num_rows) % 3)

    rows, validation = drawn(600), drawn(300)
    forests = [
        grown(BlendConfig(parts=parts, leaves=leaves), task, rows, validation, ColumnUse(4), 0, 1)
        for leaves in ((best,), (31, 2), (2, 31))
    ]
    for name, wanted in forests[0].tensors().items():
        assert all(torch.equal(forest.tensors()[name], wanted) for forest in forests[1:])


@pytest.mark.parametrize(("num_numbers", "has_many"), [(COLUMNS, True), (0, False)])
def test_numbers_have_more_thresholds_than_features(num_numbers: int, has_many: bool) -> None:
    rows = train_rows("regression", 3)
    config = BlendConfig(parts=3, most_trees=300, least_rows=1)
    forest = grown(config, task_of("regression"), rows, rows, ColumnUse(num_numbers), 0, 1)
    thresholds = forest.threshold[forest.column == 0].unique()
    assert (len(thresholds) >= BINS_OF_FEATURES) == has_many


def test_trees_over_some_columns_are_trees_over_all() -> None:
    forest, x = small_forest(), torch.from_numpy(rows_of("regression", missing=False)[0])
    wider = torch.zeros(len(x), 20)
    numbers = np.array([3, 4, 11, 12, 17])
    wider[:, numbers] = x
    assert torch.equal(forest.of_columns(numbers)(wider), forest(x))


def rows_of_groups(num_groups: int, seed: int) -> TrainRows:
    """Rows of a number that matters, and of features of groups that tell nothing of new ones."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), 40)
    number, features = rng.normal(size=len(group)), rng.normal(size=(num_groups, 6))
    label = number + 1.5 * rng.normal(size=num_groups)[group]
    x = np.column_stack([number, features[group]]).astype(np.float32)
    return TrainRows(x, label, np.ones(len(label)), group % 5)


@pytest.mark.slow
def test_features_that_mislead_about_new_groups_count_less() -> None:
    config, task = BlendConfig(parts=3, most_trees=60), task_of("regression")
    errors = np.zeros((5, 2))
    for seed in range(5):
        rows, new = rows_of_groups(15, seed), rows_of_groups(200, 100 + seed)
        for column, selections in enumerate(([], [np.array([0])])):
            forest = grown(config, task, rows, rows, ColumnUse(1, selections), 0, 1)
            predicted = forest(torch.from_numpy(new.x))[:, 0].numpy()
            errors[seed, column] = np.abs(predicted - new.label).mean()
    assert errors[:, 1].sum() < 0.98 * errors[:, 0].sum()
    assert (errors[:, 1] < 1.01 * errors[:, 0]).all()


def test_one_model_on_all_rows_reads_all_columns() -> None:
    rows, config = rows_of_groups(15, 0), BlendConfig(most_trees=20, parts=1)
    use = ColumnUse(1, [np.array([0])])
    forest = grown(config, task_of("regression"), rows, rows, use, 0, 1)
    assert (forest.column > 0).any()
