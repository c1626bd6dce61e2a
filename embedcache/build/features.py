"""The stage from distinct strings to their features: each is computed once.

What an old cache has of the same origin is not computed again, nor what a killed build of these
strings left in the partial folder, nor descriptors that any build has put into the vector store. A
value depends on its string alone, so a cache that is appended to equals one built at once.

Axes: S strings, K features.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from embedcache.build.files import TableFiles
from embedcache.build.identity import own_origin
from embedcache.build.request import BuildRequest
from embedcache.build.store import NoStore, vector_store
from embedcache.build.vectors import free_name, save_piece, saved_vectors
from embedcache.cache.layout import FeatureSet
from embedcache.cache.reader import Cache
from embedcache.config.columns import StringColumn
from embedcache.config.features import FeatureKind, FeatureTable
from embedcache.errors import CacheError
from embedcache.features.chemistry import feature_names
from embedcache.features.computing import computed_chunks
from embedcache.features.origin import computed_origin
from embedcache.features.own import OwnTables, refuse_lacking

PIECE_S = 20.0  # of computing in one file of the partial folder: about this much a kill costs
# what outlives caches: 47 ms and 2 kB a string; fingerprints take 3 ms and 8 kB
STORED = {"rdkit"}
FEW = 32  # strings; fewer take less than two seconds and need no progress bar
ByText = dict[str, Float32[np.ndarray, " K"]]


@dataclass(frozen=True)
class ColumnFeatures:
    """The features of one column's strings, in the order of their ids."""

    sets: tuple[FeatureSet, ...]
    values: Float32[np.ndarray, "S K"]  # NaN is missing
    num_computed: int  # strings
    remarks: tuple[str, ...] = ()  # on the store


def string_features(
    request: BuildRequest, files: TableFiles, old: Cache | None, folder: Path, own: OwnTables
) -> dict[str, ColumnFeatures]:
    """Return the features of all strings by string column, also of columns that have none.

    `old` is a cache whose features are not computed again, `folder` where a killed build left some.
    """
    return {
        column.name: _of_column(request, column, files, old, folder, own)
        for column in request.data.strings
    }


def _of_column(
    request: BuildRequest,
    column: StringColumn,
    files: TableFiles,
    old: Cache | None,
    folder: Path,
    own: OwnTables,
) -> ColumnFeatures:
    texts = files.last.strings[column.name].text
    refuse_lacking(own, column, texts)
    tables = iter(own.of(column))
    sets: list[FeatureSet] = []
    parts = [np.zeros((len(texts), 0), dtype=np.float32)]
    num_computed, remarks = 0, list[str]()
    for feature in column.features:
        if isinstance(feature, FeatureTable):
            table = next(tables)
            sets.append(_own_set(feature, table.columns))
            parts.append(table.of(texts))
            continue
        columns = feature_names(feature, column.kind)
        sets.append(FeatureSet(name=feature, origin=computed_origin(), columns=columns))
        known = _of_cache(old, column.name, sets[-1])
        key = _key(column.kind, sets[-1])
        store = vector_store(request.cache, key, finite=False) if feature in STORED else NoStore()
        known |= store.find(set(texts) - known.keys(), len(columns))
        values, fresh = _computed(column, feature, texts, known, folder / f"features-{key}")
        store.add(dict(zip(texts, values, strict=True)), f"{feature} of {column.kind}")
        parts.append(values)
        num_computed = max(num_computed, fresh)
        remarks += store.remarks
    values = np.concatenate(parts, axis=1)
    return ColumnFeatures(tuple(sets), values, num_computed, tuple(remarks))


def _own_set(feature: FeatureTable, columns: Sequence[str]) -> FeatureSet:
    """Return what the cache says of a user's table."""
    name = PurePath(feature.table).name
    return FeatureSet(
        name=name,
        origin=own_origin(feature),
        columns=tuple(f"{name}: {each}" for each in columns),
    )


def _of_cache(cache: Cache | None, name: str, wanted: FeatureSet) -> ByText:
    """Return what a cache has of a set by text: nothing unless it has that set, undamaged."""
    specs = () if cache is None else cache.layout.strings
    for spec in specs:
        if spec.name == name and wanted in spec.features:
            before = spec.features[: spec.features.index(wanted)]
            first = sum(len(each.columns) for each in before)
            try:
                assert cache is not None
                strings = cache.strings(name)
            except CacheError:
                continue
            values = strings.features.numpy()[:, first : first + len(wanted.columns)]
            return dict(zip(strings.text, values, strict=True))
    return {}


def _key(kind: str, wanted: FeatureSet) -> str:
    """Return what names a set in the partial folder."""
    return hashlib.sha256(f"{kind} {wanted.model_dump_json()}".encode()).hexdigest()[:16]


def _computed(
    column: StringColumn, feature: FeatureKind, texts: Sequence[str], known: ByText, folder: Path
) -> tuple[Float32[np.ndarray, "S K"], int]:
    """Return one feature of all strings, and of how many it was computed."""
    known = saved_vectors(folder) | known
    missing = [text for text in texts if text not in known]
    pending: ByText = {}
    started = time.perf_counter()
    bar = tqdm(
        total=len(missing),
        desc=f"{feature} of {column.name}",
        unit="string",
        disable=None if len(missing) > FEW else True,
    )
    with bar:
        for chunk, values in computed_chunks(missing, column.kind, feature):
            pending |= zip(chunk, values, strict=True)
            bar.update(len(chunk))
            if time.perf_counter() - started > PIECE_S:
                _keep(folder, pending)
                known |= pending
                pending, started = {}, time.perf_counter()
    known |= pending
    return np.stack([known[text] for text in texts]), len(missing)


def _keep(folder: Path, values: Mapping[str, Float32[np.ndarray, " K"]]) -> None:
    """Write what was computed so far to the partial folder, which survives a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    save_piece(free_name(folder, rank=0), list(values), np.stack(list(values.values())))
