"""Metrics against their formulas and scikit-learn; what is undefined is None."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from fusionnet.config.tasks import MULTICLASS_METRICS, Task
from fusionnet.metrics import (
    binary_metrics,
    macro_metrics,
    multiclass_metrics,
    ordinal_metrics,
    reaches,
    regression_metrics,
    task_metrics,
)


def test_regression_by_hand_and_gaps_are_left_out() -> None:
    target, prediction = np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.5, 2.0, 99.0, 2.0])
    found = regression_metrics(target, prediction)
    assert found["mae"] == pytest.approx(2.5 / 3)
    assert found["rmse"] == pytest.approx(np.sqrt(4.25 / 3))
    assert found["r2"] == pytest.approx(1 - 4.25 / np.sum((np.array([1, 2, 4]) - 7 / 3) ** 2))


def test_binary_by_hand() -> None:
    found = binary_metrics(np.array([1.0, 0, 1, 0, np.nan]), np.array([0.9, 0.6, 0.4, 0.1, 0.9]))
    halves = dict.fromkeys(("accuracy", "f1", "recall", "precision", "balanced_accuracy"), 0.5)
    # of the two positives one is first, the other third
    assert found == {**halves, "auroc": 0.75, "auprc": (1 + 2 / 3) / 2}


@pytest.mark.parametrize("num_rows", [2, 7, 257, 20_000])
@pytest.mark.parametrize("decimals", [1, 16])  # with ties, and without
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_numbers_are_those_of_scikit_learn(
    num_rows: int, decimals: int, dtype: type[np.floating]
) -> None:
    generator = np.random.default_rng(num_rows)
    target = (3 + generator.normal(size=num_rows)).round(decimals).astype(dtype)
    prediction = (target + generator.normal(size=num_rows)).round(decimals).astype(dtype)
    wide = [each.astype(np.float64) for each in (target, prediction)]
    assert regression_metrics(target, prediction) == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(*wide),
            "rmse": metrics.root_mean_squared_error(*wide),
            "r2": metrics.r2_score(*wide),
            "spearman": stats.spearmanr(*wide).statistic,
        },
        rel=1e-12,
    )
    label = np.arange(num_rows) % 3 == 0
    probability = (1 / (1 + np.exp(1.5 - label - generator.normal(size=num_rows)))).round(decimals)
    probability = probability.astype(dtype)
    chosen = probability > 0.5
    assert binary_metrics(label.astype(dtype), probability) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(label, chosen),
            "auroc": metrics.roc_auc_score(label, probability),
            "f1": metrics.f1_score(label, chosen, zero_division=0),
            "recall": metrics.recall_score(label, chosen),
            "precision": metrics.precision_score(label, chosen) if chosen.any() else None,
            "auprc": metrics.average_precision_score(label, probability),
            "balanced_accuracy": metrics.balanced_accuracy_score(label, chosen),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("num_rows", [7, 257, 5000])
@pytest.mark.parametrize("decimals", [1, 16])  # with ties, and without
def test_the_numbers_of_classes_are_those_of_scikit_learn(num_rows: int, decimals: int) -> None:
    generator = np.random.default_rng(num_rows)
    num_classes = 4
    label = generator.integers(0, num_classes, num_rows)
    label[:num_classes] = range(num_classes)
    logit = 2 * np.eye(num_classes)[label] + generator.normal(size=(num_rows, num_classes))
    chance = (np.exp(logit) / np.exp(logit).sum(1, keepdims=True)).round(decimals)
    chosen, target = chance.argmax(1), label.astype(np.float32)
    each = [(label == k, chance[:, k]) for k in range(num_classes)]
    expected = {
        "accuracy": metrics.accuracy_score(label, chosen),
        "balanced_accuracy": metrics.balanced_accuracy_score(label, chosen),
        "f1": metrics.f1_score(label, chosen, average="macro"),
        "auroc": np.mean([metrics.roc_auc_score(*pair) for pair in each]),
        "auprc": np.mean([metrics.average_precision_score(*pair) for pair in each]),
    }
    assert multiclass_metrics(target, chance) == pytest.approx(expected, rel=1e-12)
    mean = chance @ np.arange(num_classes)
    expected |= {
        "mae": metrics.mean_absolute_error(label, chosen),
        "kappa": metrics.cohen_kappa_score(label, chosen, weights="quadratic"),
        "spearman": stats.spearmanr(label, mean).statistic,
    }
    assert ordinal_metrics(target, chance) == pytest.approx(expected, rel=1e-10)


def test_a_class_that_no_row_has_does_not_count() -> None:
    chance = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    found = multiclass_metrics(np.array([0.0, 1.0, np.nan]), chance)
    assert found == dict.fromkeys(MULTICLASS_METRICS, 1.0)
    one = multiclass_metrics(np.array([0.0, 0.0, np.nan]), chance)
    assert (one["auroc"], one["auprc"], one["accuracy"]) == (None, None, 0.5)
    assert ordinal_metrics(np.zeros(3), np.eye(3)[[0, 0, 0]])["kappa"] is None


def test_several_binary_tasks_have_means_over_them() -> None:
    tasks = [Task(name=name, column=name, kind="binary") for name in ("a", "b", "c")]
    target = np.array([[1.0, 0, np.nan], [0.0, 1, np.nan]])
    found = task_metrics(tasks, target, np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.1]]))
    macro = macro_metrics(tasks, found)
    assert macro["auprc"] == pytest.approx((1 + 0.5) / 2)  # c has no label
    assert macro["auroc"] == pytest.approx((1 + 0) / 2)
    assert macro_metrics(tasks[:1], found) == {}


def test_what_is_not_finite_has_no_metrics() -> None:
    target, gap = np.array([0.0, 1.0, np.nan]), np.array([0.2, 0.7, np.nan])
    assert binary_metrics(target, gap)["auroc"] == 1  # the gap is where no target is
    for wrong in (np.nan, np.inf):
        broken = np.array([0.2, wrong, 0.1])
        for measure in (regression_metrics, binary_metrics):
            with pytest.raises(ValueError, match="not finite"):
                measure(target, broken)


def test_a_transform_adds_the_metrics_of_transformed_labels() -> None:
    task = Task(name="k", column="k", transform="log10", goals={"log10_mae": 0.5})
    exponents, off = np.array([-6.0, -1.0, 2.0]), np.array([0.5, -0.5, 1.0])
    target = np.append(10**exponents, np.nan)[:, None]
    found = task_metrics([task], target, np.append(10 ** (exponents + off), 1.0)[:, None])["k"]
    assert tuple(found) == task.metrics
    assert found["log10_mae"] == pytest.approx(2 / 3)
    assert found["log10_r2"] == pytest.approx(
        1 - 1.5 / np.square(exponents - exponents.mean()).sum()
    )
    assert found["mae"] == pytest.approx(np.abs(10 ** (exponents + off) - 10**exponents).mean())
    assert reaches("log10_mae", 0.4, 0.5)
    assert reaches("log10_r2", 0.4, 0.5) is False
    # a baseline or an oracle may be where the transform is not defined
    outside = task_metrics([task], target, np.zeros((4, 1)))["k"]
    assert (outside["log10_mae"], outside["r2"] is None) == (None, False)


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
    assert {type(value) for of_task in found.values() for value in of_task.values()} == {float}
    assert reaches("mae", 0.9, 1.0) is True
    assert reaches("r2", 0.7, 0.8) is False
    assert reaches("r2", None, 0.8) is None
