"""A weight is that of the least error: no blend is worse on validation rows than either alone, and
what is worse in every way counts nothing.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionnet.blend.columns import distinct_orders
from fusionnet.blend.weights import error_of, network_share
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


def test_columns_that_order_strings_alike_are_one() -> None:
    first = np.array([3.0, 1.0, np.nan, 2.0])
    table = np.stack([first, 10 * first, np.ones(4), -first, first**3], axis=1)
    assert distinct_orders(table) == (0, 3)
