"""A weight is that of the least error: no blend is worse on validation rows than either alone, and
what is worse in every way counts nothing.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionnet.blend.columns import StringPart, TreeColumns, distinct_orders
from fusionnet.blend.weights import best_shares, error_of, network_share
from fusionnet.config.tasks import Task


def task_of(kind: str, loss: str | None = None) -> Task:
    classes = ("a", "b", "c") if kind == "multiclass" else None
    values = {"name": "y", "column": "y", "kind": kind, "classes": classes, "loss": loss}
    return Task.model_validate(values)


def chances(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    if classes == 1:
        return rng.random((rows, 1))
    return rng.dirichlet(np.ones(classes), rows)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40))
@pytest.mark.parametrize(
    ("kind", "loss"),
    [("regression", None), ("regression", "mse"), ("binary", None), ("multiclass", None)],
)
def test_a_blend_is_no_worse_than_either(kind: str, loss: str | None, seed: int, rows: int) -> None:
    rng, task = np.random.default_rng(seed), task_of(kind, loss)
    if kind == "regression":
        label, network, trees = (rng.normal(size=(rows, 1)) for _ in range(3))
        label = label[:, 0]
    else:
        label = rng.integers(0, task.num_classes if task.has_codes else 2, rows).astype(float)
        network, trees = (chances(rng, rows, task.num_classes) for _ in range(2))
    weight = rng.random(rows) + 0.1
    share = network_share(task, network, trees, label, weight)
    assert 0 <= share <= 1
    found = error_of(task, share * network + (1 - share) * trees, label, weight)
    alone = (error_of(task, each, label, weight) for each in (network, trees))
    assert found <= min(alone) + 1e-12


def test_what_knows_the_labels_gets_all_the_weight() -> None:
    rng, task = np.random.default_rng(0), task_of("regression")
    label, weight = rng.normal(size=50), np.ones(50)
    guess = rng.normal(size=(50, 1))
    assert network_share(task, label[:, None], guess, label, weight) == 1
    assert network_share(task, guess, label[:, None], label, weight) == 0


def test_errors_of_opposite_sign_are_averaged_away() -> None:
    label, task = np.linspace(0, 1, 20), task_of("regression")
    above, below = label[:, None] + 0.1, label[:, None] - 0.3
    assert network_share(task, above, below, label, np.ones(20)) == pytest.approx(0.75)


def test_without_labels_or_weights_nothing_speaks_for_the_trees() -> None:
    none = np.zeros((0, 1))
    assert network_share(task_of("regression"), none, none, np.zeros(0), np.zeros(0)) == 1
    some = np.ones((3, 1))
    assert network_share(task_of("regression"), some, 0 * some, np.zeros(3), np.zeros(3)) == 1


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), kinds=st.integers(1, 5), rows=st.integers(2, 40))
def test_a_mix_of_several_is_no_worse_than_any(seed: int, kinds: int, rows: int) -> None:
    rng, task = np.random.default_rng(seed), task_of("regression")
    label, weight = rng.normal(size=rows), rng.random(rows) + 0.1
    each = [label[:, None] + rng.normal(size=(rows, 1)) for _ in range(kinds)]

    def error(mix: np.ndarray) -> float:
        return error_of(task, mix, label, weight)

    shares = best_shares(each, error)
    assert min(shares) >= 0
    assert sum(shares) == pytest.approx(1)
    found = error(sum(share * one for share, one in zip(shares, each, strict=True)))
    assert found <= min(map(error, each)) + 1e-9
    if kinds == 2:
        share = network_share(task, *each, label, weight)
        assert found <= error(share * each[0] + (1 - share) * each[1]) * 1.02


def test_errors_of_several_are_averaged_away() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=4000)
    each = [label[:, None] + rng.normal(size=(4000, 1)) for _ in range(4)]
    shares = best_shares(each, lambda mix: float(np.square(mix[:, 0] - label).mean()))
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


def test_a_string_column_is_read_by_fewer_of_its_features() -> None:
    columns = TreeColumns(
        num_numeric=2,
        categories=((0, 1),),
        strings=(StringPart(texts=("a", "b")), StringPart(features=(0, 2, 3))),
    )
    sets = ("rdkit", "rdkit", "morgan", "morgan")
    found = [list(each) for each in columns.selections(1, sets)]
    others = [0, 1, 2, 3, 4, 5]
    assert found == [[*others, 7, 8], [*others, 6], others]
    assert columns.selections(0, ()) == []  # there is nothing less to read
    lone = TreeColumns(num_numeric=0, categories=(), strings=(StringPart(features=(0, 1)),))
    assert lone.selections(0, ("morgan", "morgan")) == []


def test_columns_that_order_strings_alike_are_one() -> None:
    first = np.array([3.0, 1.0, np.nan, 2.0])
    table = np.stack([first, 10 * first, np.ones(4), -first, first**3], axis=1)
    assert distinct_orders(table) == (0, 3)
