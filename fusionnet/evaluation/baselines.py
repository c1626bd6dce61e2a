"""What a fusion network must beat: the mean of the train rows, the mean of each string's train
rows, and gradient boosting with strings as its columns.

Where every string is in training, its identity can be memorised, and a mean per string may explain
most of what there is. Where strings are left out, fingerprints are what chemistry offers without a
language model. Both belong beside every result.

All baselines see what the network sees: train rows to learn from, validation rows to choose the
number of trees by; missing labels count for nothing.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error

from embedcache.cache.reader import Cache
from embedcache.config import SPLITS

MOST_TREES, LEARNING_RATE = 600, 0.1
FINGERPRINT_BITS, FINGERPRINT_RADIUS = 512, 2
# cache, number of the target, seed -> one prediction per row of the table, in raw units
Baseline = Callable[[Cache, int, int], Float[np.ndarray, " N"]]


def train_mean(cache: Cache, target: int, seed: int = 0) -> Float[np.ndarray, " N"]:
    """Return the mean of the train rows' labels for every row."""
    rows = cache.rows()
    return np.full(
        len(rows.split),
        rows.targets[_labelled(cache, target, "train"), target].mean(),
        dtype=np.float64,
    )


def string_mean(cache: Cache, target: int, seed: int = 0) -> Float[np.ndarray, " N"]:
    """Return for every row the mean of the train rows with the same strings; of all train rows
    where there are none.
    """
    rows, train = cache.rows(), _labelled(cache, target, "train")
    _, same = np.unique(rows.string_id, axis=0, return_inverse=True)
    same = same.reshape(-1)
    sums = np.bincount(same[train], rows.targets[train, target], minlength=same.max() + 1)
    counts = np.bincount(same[train], minlength=same.max() + 1)
    return np.where(counts > 0, sums / np.maximum(1, counts), sums.sum() / counts.sum())[same]


def numbers(cache: Cache) -> Float[np.ndarray, "N F"]:
    """Return the numeric features as they are, and each category column one-hot: everything but the
    strings.
    """
    rows = cache.rows()
    parts = [
        np.eye(len(column.values), dtype=np.float32)[rows.category[:, place]]
        for place, column in enumerate(cache.layout.categories)
    ]
    return np.concatenate([rows.numeric, *parts], axis=1)


def one_hot(cache: Cache) -> Float[np.ndarray, "N F"]:
    """Return one column per distinct string that has train rows."""
    rows = cache.rows()
    parts = [
        np.eye(spec.num_strings, dtype=np.float32)[rows.string_id[:, place]]
        for place, spec in enumerate(cache.layout.strings)
    ]
    return np.concatenate([part[:, part[rows.split == 0].any(0)] for part in parts], axis=1)


def fingerprints(cache: Cache) -> Float[np.ndarray, "N F"]:
    """Return counts of Morgan fingerprints (Rogers and Hahn 2010) of all string columns; an empty
    string has none. Columns that never vary are left out.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS
    )
    rows, parts = cache.rows(), []
    for place, spec in enumerate(cache.layout.strings):
        texts = cache.strings(spec.name).text
        table = np.stack(
            [generator.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in texts]
        ).astype(np.float32)
        parts.append(table[:, np.ptp(table, axis=0) > 0][rows.string_id[:, place]])
    return np.concatenate(parts, axis=1)


def boosting(
    cache: Cache, features: Float[np.ndarray, "N F"], target: int = 0, seed: int = 0
) -> Float[np.ndarray, " N"]:
    """Return gradient boosting's prediction for every row (a probability where the target is
    binary), trees added until the validation rows gain no more.
    """
    rows = cache.rows()
    train, validation = (_labelled(cache, target, split) for split in SPLITS[:2])
    label = rows.targets[:, target].astype(np.float64)
    binary = cache.layout.targets[target].kind == "binary"
    maker = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor

    def fitted(num_trees: int) -> HistGradientBoostingClassifier | HistGradientBoostingRegressor:
        return maker(
            max_iter=num_trees, learning_rate=LEARNING_RATE, early_stopping=False, random_state=seed
        ).fit(features[train], label[train])

    model, errors = fitted(MOST_TREES), []
    for stage in (
        model.staged_predict_proba(features[validation])
        if binary
        else model.staged_predict(features[validation])
    ):
        errors.append(
            log_loss(label[validation], stage[:, 1], labels=[0, 1])
            if binary
            else mean_absolute_error(label[validation], stage)
        )
    # the first trees are the same ones; predicting every row at every stage would take far longer
    model = fitted(1 + int(np.argmin(errors)))
    return (model.predict_proba(features)[:, 1] if binary else model.predict(features)).astype(
        np.float64
    )


BASELINES: dict[str, Baseline] = {
    "mean of the train rows": train_mean,
    "mean of the string's train rows": string_mean,
    "boosting, no strings": lambda cache, target, seed: boosting(
        cache, numbers(cache), target, seed
    ),
    "boosting, strings one-hot": lambda cache, target, seed: boosting(
        cache, np.concatenate([numbers(cache), one_hot(cache)], axis=1), target, seed
    ),
    "boosting, Morgan fingerprints": lambda cache, target, seed: boosting(
        cache, np.concatenate([numbers(cache), fingerprints(cache)], axis=1), target, seed
    ),
}


def _labelled(cache: Cache, target: int, split: str) -> Bool[np.ndarray, " N"]:
    """Return which rows are in a split and have a label."""
    rows = cache.rows()
    return (rows.split == SPLITS.index(split)) & np.isfinite(rows.targets[:, target])
