"""scikit-learn's estimators over `FusionModel`: arrays or frames X, labels y, parameters to search.

    from fusionnet import FusionRegressor

    model = FusionRegressor(strings="smiles", encoder={"source": "encoder"})
    cross_val_score(model, frame, y, cv=5)

Each fit builds a cache and trains a run in a temporary folder. Some rows choose the best epoch and
are not trained on, and some test: 2 in 20 and 1 in 20, unless `split` says otherwise.

Axes: N rows, F columns of X, T targets, K classes.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from embedcache.errors import UserError
from fusionnet.estimators.fusion_model import FusionModel
from fusionnet.estimators.workfolder import as_polars
from fusionnet.trained.sources import is_pandas

_MOST_SEED = 2**31 - 1
_FOLDS = 20  # of the rows: one tests, a tenth of them choose the epoch
_WEIGHT = "sample_weight"


class EstimatorError(UserError, ValueError):
    """What a user can mend, as scikit-learn's tools expect it to be raised."""


class _FusionEstimator(BaseEstimator):
    """What both share: parameters, X as a frame, a fit."""

    def __init__(
        self,
        strings: Any = None,
        numeric: Any = None,
        categories: Any = None,
        group: Any = None,
        ignore: Any = (),
        config: Any = None,
        split: Any = None,
        encoder: Any = None,
        task: Any = None,
        model: Any = None,
        loss: Any = None,
        optim: Any = None,
        train: Any = None,
        blend: Any = None,
        device: Any = "cpu",
        verbose: Any = False,
        random_state: Any = None,
    ) -> None:
        """Keep the parameters as they are; `fit` reads them."""
        self.strings = strings
        self.numeric = numeric
        self.categories = categories
        self.group = group
        self.ignore = ignore
        self.config = config
        self.split = split
        self.encoder = encoder
        self.task = task
        self.model = model
        self.loss = loss
        self.optim = optim
        self.train = train
        self.blend = blend
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _fit(
        self,
        frame: pl.DataFrame,
        labels: Shaped[np.ndarray, "N T"],
        task: dict[str, Any],
        weight: Float64[np.ndarray, " N"] | None,
    ) -> None:
        """Fit `model_` to N rows with their labels; `task` is what is known of the targets."""
        self._targets = _new_names(frame, labels.shape[1])
        tasks = [
            {"name": f"target{number or ''}", "column": name, **task, **(self.task or {})}
            for number, name in enumerate(self._targets)
        ]
        beside = dict(zip(self._targets, map(pl.Series, labels.T), strict=True))
        ignore = [self.ignore] if isinstance(self.ignore, str) else list(self.ignore)
        keys = self._keys(frame.height)
        if weight is not None:
            beside[_WEIGHT] = pl.Series(weight)
            ignore.append(_WEIGHT)
            keys["data"] = {"row_weight": {"column": _WEIGHT}}
        fusion = FusionModel(
            self.strings,
            tasks,
            numeric=self._numeric_of(frame),
            categories=self.categories,
            group=self.group,
            ignore=ignore,
            config=self.config,
            device=self.device,
            verbose=self.verbose,
            **keys,
        )
        self.model_ = fusion.fit(frame.with_columns(**beside))

    def _keys(self, num_rows: int) -> dict[str, Any]:
        """Return the sections of the config that are given, with split and seed."""
        names = ("encoder", "model", "loss", "optim", "train", "blend")
        keys = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        seed = int(check_random_state(self.random_state).randint(_MOST_SEED))
        folds = max(3, min(_FOLDS, num_rows))
        validation = max(1, folds // 10)
        split = {"folds": folds, "train_folds": folds - validation - 1}
        keys["split"] = {
            **split,
            "validation_folds": validation,
            "seed": seed,
            **(self.split or {}),
        }
        keys["train"] = {"seed": seed, **keys.get("train", {})}
        return keys

    def _numeric_of(self, frame: pl.DataFrame) -> Any:
        """Return the numeric features: all columns of an array of numbers, which has no names to
        guess roles from.
        """
        is_plain = self._is_array and all(dtype.is_numeric() for dtype in frame.dtypes)
        if self.numeric is not None or self.strings or self.categories or not is_plain:
            return self.numeric
        return [
            {"column": name, "if_null": "indicator" if frame[name].null_count() else "median"}
            for name in frame.columns
        ]

    def _checked(self, X: Any, y: Any, multi_output: bool = False) -> tuple[pl.DataFrame, Any]:
        """Return X as a frame and y as an array, as scikit-learn checks them before a fit."""
        self._is_array = not _is_frame(X)
        checks: dict[str, Any] = {
            "dtype": None,
            "ensure_all_finite": "allow-nan",
            "multi_output": multi_output,
            "ensure_min_samples": 3,  # one trains, one chooses the epoch, one tests
        }
        if self._is_array:
            X, y = validate_data(self, X, y, **checks)
            return _from_array(X), y
        validate_data(self, X, skip_check_array=True)
        placeholder = np.zeros((len(X), 1))
        _, y = validate_data(BaseEstimator(), placeholder, y, **checks)
        return as_polars(X), y

    def _predicted(self, X: Any) -> pl.DataFrame:
        """Return the predictions of N rows, as `RewardModel.predict` names them."""
        check_is_fitted(self, "model_")
        if _is_frame(X):
            validate_data(self, X, reset=False, skip_check_array=True)
            frame = as_polars(X)
        else:
            checks = {"dtype": None, "ensure_all_finite": "allow-nan"}
            frame = _from_array(validate_data(self, X, reset=False, **checks))
        try:
            found: pl.DataFrame = self.model_.predict(frame)
        except UserError as error:
            raise EstimatorError(str(error)) from None
        return found


class FusionRegressor(RegressorMixin, _FusionEstimator):
    """Predicts numbers from strings, numbers and categories; `task` are keys of each target."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FusionRegressor":
        """Fit to N rows X, a frame or an array [N, F], and y [N] or [N, T]; see `FusionModel`."""
        frame, y = self._checked(X, y, multi_output=True)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, y)
        self._is_one = y.ndim == 1
        labels = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        with _as_value_errors():
            self._fit(frame, labels, {"kind": "regression"}, weight)
        return self

    def predict(self, X: Any) -> Float64[np.ndarray, "..."]:
        """Return predictions [N], or [N, T] of several targets."""
        found = self._predicted(X)
        columns = [f"predicted_{name}" for name in self._targets]
        predictions = found.select(columns).to_numpy().astype(np.float64)
        return predictions[:, 0] if self._is_one else predictions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags


class FusionClassifier(ClassifierMixin, _FusionEstimator):
    """Predicts one of K classes from strings, numbers and categories; `task` are keys of it."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FusionClassifier":
        """Fit to N rows X, a frame or an array [N, F], and their classes y [N]."""
        frame, y = self._checked(X, y)
        check_classification_targets(y)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        weighs = np.ones(len(codes), dtype=bool) if weight is None else weight > 0
        if len(np.unique(codes[weighs])) < 2:
            raise EstimatorError("y has one class in all rows of weight: nothing to tell apart")
        task: dict[str, Any] = {"kind": "binary"}
        if len(self.classes_) > 2:
            classes = [str(code) for code in range(len(self.classes_))]
            task = {"kind": "multiclass", "classes": classes}
        with _as_value_errors():
            self._fit(frame, codes.reshape(-1, 1), task, weight)
        return self

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "N K"]:
        """Return the probability of each class, in the order of `classes_`."""
        found = self._predicted(X)
        (target,) = self._targets
        if len(self.classes_) == 2:
            positive = found[f"predicted_{target}"].to_numpy().astype(np.float64)
            return np.stack([1 - positive, positive], axis=1)
        columns = [f"probability_{target}_{code}" for code in range(len(self.classes_))]
        return found.select(columns).to_numpy().astype(np.float64)

    def predict(self, X: Any) -> Shaped[np.ndarray, " N"]:
        """Return the most probable class of each row."""
        probability = self.predict_proba(X)
        return self.classes_[probability.argmax(1)]


class _as_value_errors:
    """Raise what a user can mend as scikit-learn's tools expect it."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError) and not isinstance(error, ValueError):
            raise EstimatorError(str(error)) from None


def _is_frame(X: Any) -> bool:
    return is_pandas(X) or isinstance(X, pl.DataFrame)


def _from_array(X: Shaped[np.ndarray, "N F"]) -> pl.DataFrame:
    """Return an array's columns as x0, x1, ...: as numbers where all are, else as they are."""
    columns = []
    for number, values in enumerate(X.T):
        name = f"x{number}"
        if values.dtype.kind in "biuf":
            columns.append(pl.Series(name, values.astype(np.float64), nan_to_null=True))
            continue
        try:
            numbers = values.astype(np.float64)
            columns.append(pl.Series(name, numbers, nan_to_null=True))
        except (TypeError, ValueError):
            texts = [None if value is None or value != value else str(value) for value in values]
            columns.append(pl.Series(name, texts, dtype=pl.String))
    return pl.DataFrame(columns)


def _new_names(frame: pl.DataFrame, count: int) -> list[str]:
    """Return names of target columns that the frame does not have."""
    names = ["target"] if count == 1 else [f"target{number}" for number in range(count)]
    while set(names) & set(frame.columns):
        names = [f"{name}_" for name in names]
    return names
