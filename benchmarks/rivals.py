"""What a user would try instead, on the same rows: boosting and networks on descriptors of strings.

Each reads numbers, categories one-hot and RDKit's 2D descriptors of each string (of a repeat unit
with its endpoints), learns from train rows, and may stop by validation rows; no setting is tuned.
CatBoost and pytabkit (extra `worth`) are left out where they are not installed.

Axes: n rows, C columns, S distinct strings.
"""

from collections.abc import Callable
from functools import cache as remembered
from importlib.util import find_spec
from typing import NamedTuple

import lightgbm
import numpy as np
from jaxtyping import Float
from rdkit import Chem
from rdkit.Chem import Descriptors

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from fusionnet.evaluation.baselines import take
from fusionnet.evaluation.features import numbers

MOST_TREES, PATIENCE = 2000, 50
LARGEST = 1e6  # RDKit's Ipc reaches 1e100
_OVERFLOWING = "Ipc"


class Parts(NamedTuple):
    """Columns and labels of rows that train, that validate, and the columns of those that test."""

    x: Float[np.ndarray, "n C"]
    y: Float[np.ndarray, " n"]
    x_val: Float[np.ndarray, "v C"]
    y_val: Float[np.ndarray, " v"]
    x_test: Float[np.ndarray, "t C"]
    seed: int
    num_threads: int


Rival = Callable[[Parts], Float[np.ndarray, " t"]]


def lightgbm_of(parts: Parts) -> Float[np.ndarray, " t"]:
    """Return LightGBM's predictions (Ke et al. 2017)."""
    parameters = {
        "objective": "regression",
        "learning_rate": 0.05,
        "seed": parts.seed,
        "num_threads": parts.num_threads,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(parts.x, parts.y)
    judge = data.create_valid(parts.x_val, parts.y_val)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(parameters, data, MOST_TREES, [judge], callbacks=[stop])
    return np.asarray(booster.predict(parts.x_test))


def catboost_of(parts: Parts) -> Float[np.ndarray, " t"]:
    """Return CatBoost's predictions (Prokhorenkova et al. 2018)."""
    from catboost import CatBoostRegressor  # of the extra

    model = CatBoostRegressor(
        iterations=MOST_TREES,
        random_seed=parts.seed,
        thread_count=parts.num_threads,
        early_stopping_rounds=PATIENCE,
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(parts.x, parts.y, eval_set=(parts.x_val, parts.y_val))
    return np.asarray(model.predict(parts.x_test))


def tabm_of(parts: Parts) -> Float[np.ndarray, " t"]:
    """Return TabM's predictions (Gorishniy et al. 2025), in pytabkit's form."""
    from pytabkit import TabM_D_Regressor  # of the extra

    return _network(TabM_D_Regressor, parts)


def realmlp_of(parts: Parts) -> Float[np.ndarray, " t"]:
    """Return RealMLP's predictions (Holzmueller et al. 2024), in pytabkit's form."""
    from pytabkit import RealMLP_TD_Regressor  # of the extra

    return _network(RealMLP_TD_Regressor, parts)


def _network(maker: Callable, parts: Parts) -> Float[np.ndarray, " t"]:
    """Return a network's predictions; it takes no missing values, so they are medians."""
    middle = np.nan_to_num(np.nanmedian(parts.x, axis=0))
    x, x_val, x_test = (
        np.where(np.isnan(each), middle, each).astype(np.float32)
        for each in (parts.x, parts.x_val, parts.x_test)
    )
    model = maker(device="cpu", random_state=parts.seed, n_threads=parts.num_threads)
    model.fit(x, parts.y.astype(np.float32), x_val, parts.y_val.astype(np.float32))
    return np.asarray(model.predict(x_test)).reshape(-1)


_ALL: dict[str, tuple[Rival, str]] = {
    "LightGBM, RDKit descriptors": (lightgbm_of, "lightgbm"),
    "CatBoost, RDKit descriptors": (catboost_of, "catboost"),
    "TabM, RDKit descriptors": (tabm_of, "pytabkit"),
    "RealMLP, RDKit descriptors": (realmlp_of, "pytabkit"),
}
RIVALS = {name: rival for name, (rival, needed) in _ALL.items() if find_spec(needed)}


def predictions_of(
    rival: Rival, cache: Cache, seed: int, num_threads: int
) -> Float[np.ndarray, " t"]:
    """Return a rival's predictions of the first target, in its unit, of all test rows."""
    rows = cache.rows()
    table = descriptors_of(cache)
    parts = {name: _columns(rows, cache, table, name) for name in SPLITS}
    (x, y), (x_val, y_val), (x_test, _) = (parts[name] for name in SPLITS)
    return rival(Parts(x, y, x_val, y_val, x_test, seed, num_threads))


def descriptors_of(cache: Cache) -> list[Float[np.ndarray, "S C"]]:
    """Return RDKit's descriptors of the distinct strings, by string column."""
    found = []
    for spec in cache.layout.strings:
        values = np.stack([_descriptors(text) for text in cache.strings(spec.name).text])
        found.append(values[:, np.nanstd(values, axis=0) > 0])
    return found


@remembered
def _descriptors(text: str) -> Float[np.ndarray, " C"]:
    molecule = Chem.MolFromSmiles(text)
    assert molecule is not None, "the cache has prepared strings"
    named = Descriptors.CalcMolDescriptors(molecule)
    named.pop(_OVERFLOWING, None)
    values = np.array(list(named.values()), dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return np.clip(values, -LARGEST, LARGEST)


def _columns(
    rows: RowBlock, cache: Cache, table: list[Float[np.ndarray, "S C"]], split: str
) -> tuple[Float[np.ndarray, "n C"], Float[np.ndarray, " n"]]:
    """Return the columns and labels of a split's rows, of those with a label alone."""
    labelled = np.isfinite(rows.targets[:, 0]) | (split == "test")
    own = take(rows, np.flatnonzero((rows.split == SPLITS.index(split)) & labelled))
    parts = [numbers(cache.layout)(own)]
    parts += [each[index] for each, index in zip(table, own.string_id.T, strict=True)]
    return np.concatenate(parts, axis=1), own.targets[:, 0].astype(np.float64)
