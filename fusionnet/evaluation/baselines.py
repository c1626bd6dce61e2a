"""What a fusion network must beat: two means, and gradient boosting with strings as its columns.

Where every string is in training, its identity can be memorised, and a mean per string may explain
most of what there is. Where strings are left out, fingerprints are what chemistry offers without a
language model. Both belong beside every result: an evaluation shows `beside_a_run`, which takes
seconds; the benchmarks fit all of `BASELINES` on all rows, which takes minutes.

All baselines see what the network sees: train rows to learn from, validation rows to choose the
number of trees by; missing labels count for nothing. A target's transform is applied before they
learn, and undone in what they predict.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error
from tqdm import tqdm

from embedcache.cache.layout import Layout, RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn, TargetKind
from embedcache.scaling import Scaling
from fusionnet.config.tasks import Task
from fusionnet.evaluation.features import Features, fingerprints, joined, numbers, one_hot
from fusionnet.metrics import main_metrics

MOST_TREES, LEARNING_RATE = 600, 0.1
# beside a run boosting is kept to seconds: on Stage 1 two targets take 5 s of one core (50,000 rows
# and 50 trees take as long, and do worse)
QUICK_ROWS, QUICK_TREES = 20_000, 100
PREDICTED_ROWS = 65_536  # whose features are in memory at a time

TRAIN_MEAN = "mean of the train rows"
STRING_MEAN = "mean of the string's train rows"
BOOSTING = "boosting, strings one-hot"
BOOSTING_NUMBERS = "boosting"  # of a table without strings

Baseline = Callable[[Cache, int, int], Float[np.ndarray, "N K"]]


def train_mean(rows: RowBlock, target: int, num_classes: int = 1) -> Float[np.ndarray, "N K"]:
    """Return the mean of the train rows' labels for every row; of K classes their shares."""
    means = _values(rows, _labelled(rows, "train", target), target, num_classes).mean(0)
    return np.tile(means, (len(rows.split), 1))


def string_mean(rows: RowBlock, target: int, num_classes: int = 1) -> Float[np.ndarray, "N K"]:
    """Return for every row the mean of the train rows with the same strings, as `train_mean` does.

    Rows with strings that no labelled train row has get the mean of all train rows.
    """
    train = _labelled(rows, "train", target)
    values = _values(rows, train, target, num_classes)
    _, same = np.unique(rows.string_id, axis=0, return_inverse=True)
    same = same.reshape(-1)
    counts = np.bincount(same[train], minlength=same.max() + 1)[:, None]
    columns = [np.bincount(same[train], each, minlength=len(counts)) for each in values.T]
    sums = np.stack(columns, axis=1)
    return np.where(counts > 0, sums / np.maximum(1, counts), values.mean(0))[same]


def _values(
    rows: RowBlock, chosen: Int[np.ndarray, " n"], target: int, num_classes: int
) -> Float[np.ndarray, "n K"]:
    """Return what means are taken of: labels, or 1 for a row's class and 0 for others."""
    labels = rows.targets[chosen, target].astype(np.float64)
    return labels[:, None] if num_classes == 1 else np.eye(num_classes)[labels.astype(np.int64)]


class Fit(NamedTuple):
    """What boosting learns from, and how large it may grow."""

    train: RowBlock
    validation: RowBlock
    features: Features
    target: int
    kind: TargetKind
    num_classes: int = 1
    most_trees: int = MOST_TREES
    seed: int = 0


def boosting(fit: Fit, rows: RowBlock) -> Float[np.ndarray, "N K"]:
    """Return gradient boosting's prediction for every row, of classes with codes their K chances.

    Of two classes it is the chance of the positive one. Trees are added until the validation rows
    gain no more; all of them where none is labelled.
    """
    label = fit.train.targets[:, fit.target].astype(np.float64)
    classes = np.unique(label)
    if len(classes) == 1:
        return train_mean(fit.train, fit.target, fit.num_classes)[:1].repeat(len(rows.split), 0)
    has_classes = fit.kind != "regression"
    maker = HistGradientBoostingClassifier if has_classes else HistGradientBoostingRegressor
    model = maker(
        max_iter=fit.most_trees,
        learning_rate=LEARNING_RATE,
        early_stopping=False,
        random_state=fit.seed,
    ).fit(fit.features(fit.train), label)

    def stages(rows: RowBlock) -> Iterator[Float[np.ndarray, "N K"]]:
        """Yield the prediction of the first tree, of the first two, ..."""
        if not has_classes:
            yield from (each[:, None] for each in model.staged_predict(fit.features(rows)))
            return
        for each in model.staged_predict_proba(fit.features(rows)):
            chances = np.zeros((len(each), max(2, fit.num_classes)))
            chances[:, classes.astype(np.int64)] = each
            yield chances if fit.num_classes > 1 else chances[:, 1:]

    num_labels = max(2, fit.num_classes)
    error = partial(log_loss, labels=range(num_labels)) if has_classes else mean_absolute_error
    observed = fit.validation.targets[:, fit.target].astype(np.float64)
    # scikit-learn predicts no empty table
    staged = stages(fit.validation) if len(observed) else ()
    errors = [error(observed, stage) for stage in staged]
    best = int(np.argmin(errors)) if errors else fit.most_trees - 1
    predictions = [
        next(islice(stages(take(rows, part)), best, None))
        for part in _blocks(np.arange(len(rows.split)))
    ]
    return np.concatenate([np.zeros((0, fit.num_classes)), *predictions])


class BesideRun(NamedTuple):
    """Predictions of the quick baselines, and what their reader must know."""

    # by name and number of the target, in raw units
    predictions: dict[str, dict[int, Float[np.ndarray, "n K"]]]
    remark: str


def beside_a_run(
    rows: RowBlock,
    layout: Layout,
    scaling: Scaling,
    tasks: Sequence[Task],
    chosen: Int[np.ndarray, " n"],
    progress: bool = True,
) -> BesideRun:
    """Return what a trained run must beat, on n chosen ones of all rows of its cache.

    The two means read all train rows. Boosting reads at most `QUICK_ROWS` of them (drawn at random)
    and as many validation rows, and predicts the tasks of the largest weight alone. A target
    without a labelled train row has no baselines, and a table without strings no mean by string.
    """
    main = {task.column for task, _ in main_metrics(tasks)}
    of_strings = [STRING_MEAN, BOOSTING] if layout.strings else [BOOSTING_NUMBERS]
    names = [TRAIN_MEAN, *of_strings]
    found: dict[str, dict[int, Float[np.ndarray, "n K"]]] = {name: {} for name in names}
    rows = _as_learnt(rows, scaling)
    bar = tqdm(layout.targets, desc="baselines", leave=False, disable=None if progress else True)
    for target, column in enumerate(bar):
        if not len(_labelled(rows, "train", target)):
            continue  # nothing to learn from
        num_classes = num_classes_of(column)
        for name, mean in ((TRAIN_MEAN, train_mean), (STRING_MEAN, string_mean)):
            if name in found:
                means = mean(rows, target, num_classes)[chosen]
                found[name][target] = _in_units(means, scaling, target)
        if column.column in main:
            train = take(rows, _labelled(rows, "train", target, QUICK_ROWS))
            validation = take(rows, _labelled(rows, "validation", target, QUICK_ROWS))
            features = joined(numbers(layout), one_hot(train))
            fit = Fit(train, validation, features, target, column.kind, num_classes, QUICK_TREES)
            boosted = boosting(fit, take(rows, chosen))
            found[names[-1]][target] = _in_units(boosted, scaling, target)
    num_train = int((rows.split == SPLITS.index("train")).sum())
    remark = (
        f"Boosting learned from {min(num_train, QUICK_ROWS):,} of {num_train:,} train rows, in at"
        f" most {QUICK_TREES} trees."
    )
    for column in layout.targets:
        if column.transform != "standardize":
            remark += f" Means and trees are of {column.transform} of {column.column}."
    return BesideRun(found, remark)


def _as_learnt(rows: RowBlock, scaling: Scaling) -> RowBlock:
    """Return rows whose targets have their transforms applied."""
    targets = scaling.as_learnt(torch.from_numpy(rows.targets).double())
    return replace(rows, targets=targets.float().numpy())


def _in_units(
    predictions: Float[np.ndarray, "N K"], scaling: Scaling, target: int
) -> Float[np.ndarray, "N K"]:
    """Return predictions of transformed labels in the target's own unit; chances as they are."""
    if scaling.target_transforms[target] == "standardize":
        return predictions
    wide = torch.from_numpy(predictions.astype(np.float64))
    return scaling.of_target(target).in_units(wide).numpy()


def take(rows: RowBlock, chosen: Int[np.ndarray, " n"]) -> RowBlock:
    """Return the rows at these positions."""
    columns = {field.name: getattr(rows, field.name)[chosen] for field in fields(RowBlock)}
    return replace(rows, **columns)


def _labelled(
    rows: RowBlock, split: str, target: int, most: int | None = None
) -> Int[np.ndarray, " n"]:
    """Return the positions of a split's rows that have a label, at most so many, in order."""
    observed = np.isfinite(rows.targets[:, target])
    found = np.flatnonzero((rows.split == SPLITS.index(split)) & observed)
    if most is None or len(found) <= most:
        return found
    return np.sort(np.random.default_rng(0).choice(found, most, replace=False))


def _blocks(rows: Int[np.ndarray, " N"]) -> list[Int[np.ndarray, " n"]]:
    return np.split(rows, range(PREDICTED_ROWS, len(rows), PREDICTED_ROWS)) if len(rows) else []


def _boosted(features: Callable[[Cache, RowBlock], Features]) -> Baseline:
    """Return boosting as a baseline on whole caches, given the features of a cache's rows."""

    def baseline(cache: Cache, target: int, seed: int) -> Float[np.ndarray, "N K"]:
        rows = _as_learnt(cache.rows(), cache.scaling)
        train = take(rows, _labelled(rows, "train", target))
        validation = take(rows, _labelled(rows, "validation", target))
        column = cache.layout.targets[target]
        made = features(cache, train)
        num_classes = num_classes_of(column)
        fit = Fit(train, validation, made, target, column.kind, num_classes, MOST_TREES, seed)
        return _in_units(boosting(fit, rows), cache.scaling, target)

    return baseline


def num_classes_of(column: TargetColumn) -> int:
    """Return K, the number of classes of a target with codes; 1 for others."""
    return len(column.classes or ()) if column.has_codes else 1


def _mean(learn: Callable[[RowBlock, int, int], Float[np.ndarray, "N K"]]) -> Baseline:
    """Return a mean as a baseline on whole caches."""

    def baseline(cache: Cache, target: int, seed: int) -> Float[np.ndarray, "N K"]:
        rows = _as_learnt(cache.rows(), cache.scaling)
        learned = learn(rows, target, num_classes_of(cache.layout.targets[target]))
        return _in_units(learned, cache.scaling, target)

    return baseline


BASELINES: dict[str, Baseline] = {
    TRAIN_MEAN: _mean(train_mean),
    STRING_MEAN: _mean(string_mean),
    "boosting, no strings": _boosted(lambda cache, train: numbers(cache.layout)),
    BOOSTING: _boosted(lambda cache, train: joined(numbers(cache.layout), one_hot(train))),
    "boosting, Morgan fingerprints": _boosted(
        lambda cache, train: joined(numbers(cache.layout), fingerprints(cache))
    ),
}
