"""scikit-learn's conventions: its own estimator checks, and what people do with estimators."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from shared_fixtures import TINY_STRINGS
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from embedcache.errors import UserError
from fusionnet import FusionClassifier, FusionRegressor

# a fit of such takes a third of a second
TINY: dict[str, Any] = {
    "blend": {"parts": 2, "most_trees": 20},
    "model": {
        "adapter_hidden": 8,
        "adapter_width": 8,
        "numeric_hidden": 16,
        "numeric_width": 16,
        "fusion_width": 32,
        "num_layers": 0,
        "num_heads": 2,
        "feedforward": 32,
        "dropout": 0.0,
        "linear_skip": True,
    },
    "task": {"head": [16], "head_dropout": 0.0},
    "train": {"epochs": 4, "batch_rows": 16, "prove": 0, "cpu_threads": 1},
    "optim": {"warmup_epochs": 0, "lr": 0.03},
    "random_state": 0,
}
# the checks that do not apply, and why
_NOT_ALIKE = (
    "a row of weight 2 is not the same as the row twice: each of the two is in a split and a"
    " batch of its own"
)
_ROUNDING = (
    "networks compute in fp32: the product of a batch may differ in the last digits from those of"
    " its rows alone, by more than the 1e-7 that is asked for"
)
DO_NOT_APPLY = {
    "check_sample_weight_equivalence_on_dense_data": _NOT_ALIKE,
    "check_sample_weight_equivalence_on_sparse_data": _NOT_ALIKE,
    "check_methods_subset_invariance": _ROUNDING,
    "check_methods_sample_order_invariance": _ROUNDING,
}


def checks() -> Iterator[Any]:
    """Yield scikit-learn's checks of both estimators, each with a name of its own."""
    for estimator in (FusionRegressor(**TINY), FusionClassifier(**TINY)):
        seen: list[str] = []
        for each, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            seen.append(name)
            why = DO_NOT_APPLY.get(name)
            yield pytest.param(
                each,
                check,
                id=f"{type(estimator).__name__}-{name}-{seen.count(name)}",
                marks=[] if why is None else [pytest.mark.xfail(reason=why, strict=False)],
            )


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_what_scikit_learn_asks_of_estimators_holds(
    estimator: Any, check: Callable[[Any], None]
) -> None:
    check(estimator)


def table(num_rows: int = 160) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, 4, num_rows), rng.normal(size=num_rows)
    smiles = [TINY_STRINGS[number] for number in string]
    return pd.DataFrame({"smiles": smiles, "x": x}), 3.0 * string + x


@pytest.fixture(scope="module")
def regressor(tiny_encoder_folder: Path) -> FusionRegressor:
    encoder = {"source": str(tiny_encoder_folder)}
    return FusionRegressor(strings="smiles", encoder=encoder, **TINY)


def test_a_clone_has_the_parameters_and_they_can_be_set(regressor: FusionRegressor) -> None:
    same = clone(regressor)
    assert same.get_params() == regressor.get_params()
    assert same.set_params(random_state=3, train={"epochs": 1}).train == {"epochs": 1}
    assert regressor.train == TINY["train"]


@pytest.mark.slow
def test_frames_of_strings_are_cross_validated(regressor: FusionRegressor) -> None:
    frame, y = table()
    assert cross_val_score(regressor, frame, y, cv=2).min() > 0.5
    search = GridSearchCV(regressor, {"optim": [{"lr": 0.03}, {"lr": 1e-6}]}, cv=2, refit=False)
    assert search.fit(frame[:80], y[:80]).best_params_ == {"optim": {"lr": 0.03}}


@pytest.mark.slow
def test_polars_and_pandas_are_fitted_alike(regressor: FusionRegressor) -> None:
    frame, y = table(60)
    other = pl.DataFrame({name: frame[name].to_numpy() for name in frame.columns})
    first, second = clone(regressor).fit(frame, y), clone(regressor).fit(other, y)
    assert (first.predict(frame) == second.predict(other)).all()
    assert list(first.feature_names_in_) == list(second.feature_names_in_) == ["smiles", "x"]


@pytest.mark.slow
def test_arrays_run_through_a_pipeline_with_several_targets() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    y = np.stack([X[:, 0] + X[:, 1], X[:, 2]], axis=1)
    model = make_pipeline(StandardScaler(), FusionRegressor(**TINY)).fit(X, y)
    assert model.predict(X[:7]).shape == (7, 2)
    assert model.score(X, y) > 0.8
    X[::9, 0] = np.nan
    assert FusionRegressor(**TINY).fit(X, y[:, 1]).score(X, y[:, 1]) > 0.8


@pytest.mark.slow
def test_classes_keep_their_names_and_probabilities_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 2))
    for labels in (np.array(["low", "mid", "high"]), np.array([-1, 1])):
        y = labels[(np.digitize(X[:, 0], [-0.5, 0.5])) % len(labels)]
        model = FusionClassifier(**TINY).fit(X, y)
        probability = model.predict_proba(X)
        assert np.allclose(probability.sum(1), 1, atol=1e-5)
        assert set(model.predict(X)) <= set(labels)
        assert (model.classes_[probability.argmax(1)] == model.predict(X)).all()
    assert FusionClassifier(**TINY).fit(X, X[:, 0] > 0).score(X, X[:, 0] > 0) > 0.8


@pytest.mark.slow
def test_rows_of_weight_zero_teach_nothing() -> None:
    X = np.tile(np.linspace(-1, 1, 60).reshape(-1, 1), (2, 1))
    y = np.concatenate([X[:60, 0], -X[60:, 0]])
    weight = np.repeat([1.0, 0.0], 60)
    model = FusionRegressor(**TINY).fit(X, y, sample_weight=weight)
    assert model.score(X[:60], y[:60]) > 0.8


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: FusionRegressor().fit(np.zeros((2, 1)), [0, 1]), "minimum of 3"),
        (lambda: FusionClassifier().fit(np.zeros((9, 1)), [1] * 9), "one class"),
        (
            lambda: FusionRegressor(split={"strategy": "x"}).fit(*table()),
            "strategy: Input should be",
        ),
        (lambda: FusionRegressor(strings="no").fit(*table()), "there is no column 'no'"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error_in_our_words(
    fit: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit()
    assert isinstance(caught.value, UserError) or "minimum of" in message
