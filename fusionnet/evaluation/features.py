"""What gradient boosting reads of a cache's rows: numbers, strings one-hot, fingerprints.

Axes: N rows, F features.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from embedcache.cache.layout import Layout, RowBlock
from embedcache.cache.reader import Cache

FINGERPRINT_BITS, FINGERPRINT_RADIUS = 512, 2
MOST_ONE_HOT = 255  # strings of a column; rarer ones share no column

Features = Callable[[RowBlock], Float[np.ndarray, "N F"]]


def numbers(layout: Layout) -> Features:
    """Return everything but the strings: numeric features as they are, categories one-hot."""
    sizes = [len(column.values) for column in layout.categories]

    def features(rows: RowBlock) -> Float[np.ndarray, "N F"]:
        codes = zip(sizes, rows.category.T, strict=True)
        one_hot = [np.eye(size, dtype=np.float32)[code] for size, code in codes]
        return np.concatenate([rows.numeric, *one_hot], axis=1)

    return features


def one_hot(train: RowBlock) -> Features:
    """Return one column per distinct string of these rows, of many the most frequent."""
    kept = []
    for string_id in train.string_id.T:
        strings, counts = np.unique(string_id, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:MOST_ONE_HOT]
        kept.append(np.sort(strings[most]))

    def features(rows: RowBlock) -> Float[np.ndarray, "N F"]:
        pairs = zip(rows.string_id.T, kept, strict=True)
        parts = [string_id[:, None] == strings for string_id, strings in pairs]
        return np.concatenate([_no_columns(rows), *parts], axis=1).astype(np.float32)

    return features


def fingerprints(cache: Cache) -> Features:
    """Return counts of Morgan fingerprints (Rogers and Hahn 2010) of all string columns.

    An empty string has none. Columns that never vary are left out.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS
    )
    tables = []
    for spec in cache.layout.strings:
        molecules = [Chem.MolFromSmiles(text) for text in cache.strings(spec.name).text]
        counts = [generator.GetCountFingerprintAsNumPy(molecule) for molecule in molecules]
        table = np.stack(counts).astype(np.float32)
        tables.append(table[:, np.ptp(table, axis=0) > 0])

    def features(rows: RowBlock) -> Float[np.ndarray, "N F"]:
        pairs = zip(tables, rows.string_id.T, strict=True)
        parts = [table[string_id] for table, string_id in pairs]
        return np.concatenate([_no_columns(rows), *parts], axis=1)

    return features


def string_features(cache: Cache) -> Features:
    """Return the features per string that the cache holds, of all string columns.

    They are raw, NaN where missing, as trees take them. Columns that never vary are left out.
    """
    tables = []
    for spec in cache.layout.strings:
        table = cache.strings(spec.name).features.numpy()
        varies = np.array([len(np.unique(column)) > 1 for column in table.T], dtype=bool)
        tables.append(table[:, varies])

    def features(rows: RowBlock) -> Float[np.ndarray, "N F"]:
        pairs = zip(tables, rows.string_id.T, strict=True)
        parts = [table[string_id] for table, string_id in pairs]
        return np.concatenate([_no_columns(rows), *parts], axis=1)

    return features


def _no_columns(rows: RowBlock) -> Float[np.ndarray, "N 0"]:
    """Return what a table without string columns has of them."""
    return np.zeros((len(rows.split), 0), dtype=np.float32)


def joined(*parts: Features) -> Features:
    """Return all the parts' columns."""
    return lambda rows: np.concatenate([part(rows) for part in parts], axis=1)
