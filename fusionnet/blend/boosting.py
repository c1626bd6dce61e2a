"""Trees grown by LightGBM (Ke et al. 2017) on the train rows of one target.

One model is grown on each all-but-one part of the rows, whose left-out part says when trees no
longer help. What predicts is a model on all rows, with as many trees as these had. So all train
rows are learned from, and validation rows are left for the weights. Two kinds of trees are grown,
which split at the best thresholds or at random ones (Geurts et al. 2006), and one more, at random
ones, for each selection of columns that is asked for; how much each counts is chosen by what they
predict of the parts left out (stacking: Wolpert 1992, Breiman 1996).

Models are grown side by side, each on few threads: those of one model wait for each other at every
split, for longer than they work where rows are few. Their number changes no tree.

Axes: n train rows, C columns, c those that a kind of trees reads, K outputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import joblib
import lightgbm
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from fusionnet.blend.blend import KindPlan, TreePlan, of_raw
from fusionnet.blend.dumped import forest_of
from fusionnet.blend.forest import Forest, joined
from fusionnet.blend.weights import best_shares, error_of
from fusionnet.config.blend import BlendConfig
from fusionnet.config.tasks import Task

PATIENCE = 50  # trees without a gain on left-out rows, after which no more are added
_OBJECTIVES = {"regression": "regression", "binary": "binary", "multiclass": "multiclass"}
# of a column of numbers, and of one of a string's features: there are thousands of these, and four
# tables lost nothing by it
BINS_OF_NUMBERS, BINS_OF_FEATURES = 255, 63
_AT_RANDOM = {"extra_trees": True}
KINDS: tuple[dict[str, Any], ...] = ({}, _AT_RANDOM)
MOST_BYTES = 2 * 2**30  # of copies of rows that are learned from at the same time
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainRows:
    """What trees learn from: labels are as they are learnt, or class numbers."""

    x: Float[np.ndarray, "n C"]
    label: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]  # rows of one part stay together

    def parted(self, left_out: Bool[np.ndarray, " n"]) -> tuple["TrainRows", "TrainRows"]:
        """Return the other rows, and those left out."""
        return self.take(~left_out), self.take(left_out)

    def take(self, chosen: Any) -> "TrainRows":
        """Return the rows at these positions."""
        return TrainRows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class ColumnUse:
    """What is known of the columns before trees are grown."""

    num_numbers: int  # the first ones
    selections: Sequence[Int[np.ndarray, " _"]] = ()  # columns that one more kind each reads alone


@dataclass(frozen=True)
class _Kind:
    """Parameters of LightGBM, and the numbers of the columns that are read."""

    parameters: dict[str, Any]
    columns: Int[np.ndarray, " c"]

    def of(self, rows: TrainRows) -> TrainRows:
        """Return rows of the columns that are read."""
        if len(self.columns) == rows.x.shape[1]:
            return rows
        return replace(rows, x=rows.x[:, self.columns])


def tree_plan(
    config: BlendConfig,
    task: Task,
    rows: TrainRows,
    validation: TrainRows,
    use: ColumnUse,
    seed: int,
    num_threads: int,
) -> TreePlan:
    """Return what trees are to be grown, by what smaller models predict of the parts left out."""
    if len(np.unique(rows.label)) == 1:
        return ()
    left_out = _left_out(config, rows)
    at_once = _at_once(rows, num_threads, len(left_out))
    parameters = _parameters(config, task, seed, num_threads // at_once)
    kinds = _kinds(parameters, use, rows.x.shape[1])
    if not left_out:
        judge = validation if len(validation.label) else rows
        sizes = [_grown(config, task, kinds[0], leaves, rows, judge) for leaves in config.leaves]
        return (_planned(0, [_best(sizes)], 1.0),)
    by_kind = _grown_by_parts(config, task, kinds, rows, left_out, at_once)
    shares = _shares(task, by_kind, [rows.take(part) for part in left_out])
    return tuple(
        _planned(number, by_kind[number], share) for number, share in enumerate(shares) if share > 0
    )


def grown_by(
    plan: TreePlan,
    config: BlendConfig,
    task: Task,
    rows: TrainRows,
    use: ColumnUse,
    seed: int,
    num_threads: int,
) -> Forest:
    """Return trees of a plan, of all rows; one class, or one value, alone is a leaf."""
    values, counts = np.unique(rows.label, return_counts=True)
    if len(values) == 1 or not plan:
        return _constant(task, float(values[counts.argmax()]))
    at_once = _at_once(rows, num_threads, len(plan))
    parameters = _parameters(config, task, seed, num_threads // at_once)
    kinds = _kinds(parameters, use, rows.x.shape[1])
    calls = (partial(_of_all, task, kinds[own.number], rows, own) for own in plan)
    return joined(_in_threads(calls, at_once), [own.share for own in plan])


def _at_once(rows: TrainRows, num_threads: int, number: int) -> int:
    """Return how many models of these rows are grown side by side, of so many."""
    return max(1, min(num_threads, number, MOST_BYTES // max(1, rows.x.nbytes)))


def _planned(number: int, models: Sequence["_Grown"], share: float) -> KindPlan:
    """Return a kind's trees: as large as these models', as many as they have on average."""
    num_trees = round(float(np.mean([each.booster.best_iteration for each in models])))
    return KindPlan(number, models[0].leaves, num_trees, share)


def _kinds(parameters: dict[str, Any], use: ColumnUse, num_columns: int) -> list[_Kind]:
    """Return all kinds of trees."""
    every = np.arange(num_columns)
    read = [(kind, every) for kind in KINDS] + [(_AT_RANDOM, each) for each in use.selections]
    return [
        _Kind(parameters | kind | {"max_bin_by_feature": _bins(use, columns)}, columns)
        for kind, columns in read
    ]


def _bins(use: ColumnUse, columns: Int[np.ndarray, " c"]) -> list[int]:
    return [BINS_OF_NUMBERS if each < use.num_numbers else BINS_OF_FEATURES for each in columns]


def _left_out(config: BlendConfig, rows: TrainRows) -> list[Bool[np.ndarray, " n"]]:
    """Return which rows each model does not learn from; none of one model on all rows."""
    numbers = np.unique(rows.part)
    if config.parts == 1 or len(numbers) < 2:
        return []
    parts = [rows.part == number for number in numbers]
    return [part for part in parts if len(np.unique(rows.label[~part])) > 1]


def _shares(
    task: Task, by_kind: Sequence[Sequence["_Grown"]], left_out: Sequence[TrainRows]
) -> list[float]:
    """Return how much each kind of trees counts, by the parts left out."""
    label = np.concatenate([part.label for part in left_out])
    weight = np.concatenate([part.weight for part in left_out])
    found = [np.concatenate([each.raw for each in models]) for models in by_kind]
    return best_shares(found, lambda raw: _error(task, raw, label, weight))


def _parameters(config: BlendConfig, task: Task, seed: int, num_threads: int) -> dict[str, Any]:
    kind = "multiclass" if task.has_codes else task.kind
    return {
        "objective": _OBJECTIVES[kind],
        **({"num_class": task.num_classes} if task.has_codes else {}),
        "learning_rate": config.shrinkage,
        "min_data_in_leaf": config.least_rows,
        "lambda_l2": 1.0,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_pre_filter": False,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": num_threads,
        "verbosity": -1,
    }


@dataclass(frozen=True)
class _Grown:
    """A model, and what it predicts of the rows that said when to stop."""

    raw: Float[np.ndarray, "m K"]
    error: float
    booster: lightgbm.Booster
    leaves: int


def _grown_by_parts(
    config: BlendConfig,
    task: Task,
    kinds: Sequence[_Kind],
    rows: TrainRows,
    left_out: Sequence[Bool[np.ndarray, " n"]],
    at_once: int,
) -> list[list[_Grown]]:
    """Return by kind a model for each part left out, of the size that is best for the first."""

    def model(kind: _Kind, leaves: int, part: Bool[np.ndarray, " n"]) -> _Grown:
        return _grown(config, task, kind, leaves, *kind.of(rows).parted(part))

    first, *others = left_out
    num_sizes, num_others = len(config.leaves), len(others)
    tried = [partial(model, kind, leaves, first) for kind in kinds for leaves in config.leaves]
    sizes = _in_threads(tried, at_once)
    best = [_best(sizes[k * num_sizes : (k + 1) * num_sizes]) for k in range(len(kinds))]
    rest = _in_threads(
        (
            partial(model, kind, own.leaves, part)
            for kind, own in zip(kinds, best, strict=True)
            for part in others
        ),
        at_once,
    )
    return [[own, *rest[k * num_others : (k + 1) * num_others]] for k, own in enumerate(best)]


def _best(sizes: Sequence[_Grown]) -> _Grown:
    """Return the model of the size that is best for the rows that say when to stop."""
    return min(sizes, key=lambda grown: grown.error)


def _in_threads(calls: Iterable[Callable[[], _T]], number: int) -> list[_T]:
    """Return what the calls return, so many of which run at the same time."""
    run = joblib.Parallel(n_jobs=number, backend="threading", batch_size=1)
    found: list[_T] = run(joblib.delayed(call)() for call in calls)
    return found


def _grown(
    config: BlendConfig, task: Task, kind: _Kind, leaves: int, own: TrainRows, judge: TrainRows
) -> _Grown:
    parameters = kind.parameters | {"num_leaves": leaves}
    data = lightgbm.Dataset(own.x, own.label, weight=own.weight, params=parameters)
    judging = data.create_valid(judge.x, judge.label, weight=judge.weight)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(parameters, data, config.most_trees, [judging], callbacks=[stop])
    raw = np.asarray(booster.predict(judge.x, raw_score=True)).reshape(-1, task.num_classes)
    error = _error(task, raw, judge.label, judge.weight)
    return _Grown(raw, error, booster.free_dataset(), leaves)


def _error(
    task: Task,
    raw: Float[np.ndarray, "m K"],
    label: Float[np.ndarray, " m"],
    weight: Float[np.ndarray, " m"],
) -> float:
    return error_of(task, of_raw(task, torch.from_numpy(raw)).numpy(), label, weight)


def _of_all(task: Task, kind: _Kind, rows: TrainRows, plan: KindPlan) -> Forest:
    """Return a model of a plan on all rows."""
    parameters = kind.parameters | {"num_leaves": plan.leaves}
    read = kind.of(rows)
    data = lightgbm.Dataset(read.x, read.label, weight=read.weight, params=parameters)
    forest = forest_of(lightgbm.train(parameters, data, plan.trees), task.num_classes)
    return forest.of_columns(kind.columns)


def _constant(task: Task, label: float) -> Forest:
    """Return trees that always give the only label there is."""
    sure = 20.0  # a logit whose probability is 1 within 2e-9
    if task.has_codes:
        values = [sure if k == int(label) else -sure for k in range(task.num_classes)]
    elif task.kind == "binary":
        values = [sure if label > 0.5 else -sure]
    else:
        values = [label]
    own = torch.arange(len(values))
    return Forest(
        column=torch.full_like(own, -1),
        threshold=torch.zeros(len(values), dtype=torch.float64),
        missing_left=torch.zeros(len(values), dtype=torch.bool),
        left=own,
        right=own,
        value=torch.tensor(values, dtype=torch.float64),
        root=own,
        num_outputs=len(values),
    )
