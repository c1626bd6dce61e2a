"""Metrics against their formulas; what is undefined is None."""

import numpy as np
import pytest

from fusionnet.config import Task
from fusionnet.metrics import binary_metrics, reaches, regression_metrics, task_metrics


def test_regression_by_hand_and_gaps_are_left_out() -> None:
    target, prediction = np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.5, 2.0, 99.0, 2.0])
    found = regression_metrics(target, prediction)
    assert found["mae"] == pytest.approx(2.5 / 3)
    assert found["rmse"] == pytest.approx(np.sqrt(4.25 / 3))
    assert found["r2"] == pytest.approx(1 - 4.25 / np.sum((np.array([1, 2, 4]) - 7 / 3) ** 2))


def test_binary_by_hand() -> None:
    found = binary_metrics(np.array([1.0, 0, 1, 0, np.nan]), np.array([0.9, 0.6, 0.4, 0.1, 0.9]))
    assert found == {"accuracy": 0.5, "auroc": 0.75, "f1": 0.5, "recall": 0.5, "precision": 0.5}


def test_undefined_is_none() -> None:
    nothing = np.full(3, np.nan)
    assert set(regression_metrics(nothing, nothing).values()) == {None}
    assert set(binary_metrics(nothing, nothing).values()) == {None}
    assert regression_metrics(np.ones(3), np.zeros(3))["r2"] is None
    one_class = binary_metrics(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert (one_class["auroc"], one_class["recall"], one_class["precision"], one_class["f1"]) == (
        None,
        None,
        None,
        None,
    )
    assert one_class["accuracy"] == 1.0


def test_tasks_are_named_by_their_column_and_goals_know_their_direction() -> None:
    tasks = (Task(name="ef", column="delta"), Task(name="opt", column="good", kind="binary"))
    found = task_metrics(tasks, np.array([[1.0, 1], [2.0, 0]]), np.array([[1.0, 0.8], [2.0, 0.3]]))
    assert found["delta"]["mae"] == 0
    assert found["good"]["auroc"] == 1
    assert reaches("mae", 0.9, 1.0) is True
    assert reaches("r2", 0.7, 0.8) is False
    assert reaches("r2", None, 0.8) is None
