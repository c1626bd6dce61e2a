"""The phases of one build: table, splits, strings -> features -> vectors -> rows and scaling.

Each phase is a function that takes what those before it returned; a sealed store in the partial
folder is what the last one leaves.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from embedcache.build.attributes import provenance, report
from embedcache.build.features import string_features
from embedcache.build.files import TableFiles, read_files
from embedcache.build.remarks import RowRemarks
from embedcache.build.request import BuildRequest
from embedcache.build.statistics import TrainStatistics
from embedcache.build.strings import EncodedStrings, encode_strings, unreadable
from embedcache.cache import manifest
from embedcache.cache.folder import CacheFolder
from embedcache.cache.identity import FORMAT_VERSION, Identity
from embedcache.cache.layout import Layout
from embedcache.cache.reader import Cache
from embedcache.cache.writer import StoreWriter
from embedcache.errors import TableError
from embedcache.features.own import OwnTables
from embedcache.ranks import Ranks
from embedcache.scaling import Scaling
from embedcache.table.kinds import parquet_files

Stamp = tuple[tuple[int, int], ...]  # size and time of change of each part


def write_store(
    request: BuildRequest,
    folder: CacheFolder,
    identity: Identity,
    old: Cache | None,
    base: Cache | None,
    ranks: Ranks,
) -> None:
    """Leave the sealed store of a new cache in the partial folder.

    The vectors of the `old` cache are not encoded again; the rows of `base` come first, and the
    files that it does not have are appended to them.
    """
    stamps = _stamps(request.data.files[0 if base is None else len(base.identity.files) :])
    seconds: dict[str, float] = {}
    own = OwnTables(request.data)
    with _timed("table and split", seconds):
        judge = partial(unreadable, request, own)
        files = read_files(request.data, request.targets, request.split, base, judge)
    with _timed("features", seconds):
        features = string_features(request, files, old, folder.vectors, own)
    with _timed("strings", seconds):
        strings = encode_strings(request, files, features, old, folder.vectors, ranks)
    with _timed("rows", seconds):
        layout, remarks = write_rows(request, files, strings, folder.store)
    _check_unchanged(stamps)
    attributes = {
        "format_version": FORMAT_VERSION,
        "identity": dict(identity.entries),
        "layout": layout.model_dump(mode="json", exclude={"groups"}),
        "provenance": provenance(request, files),
        "report": report(files, strings, features, remarks, ranks.size, seconds),
    }
    manifest.seal(folder.store, attributes)


def write_rows(
    request: BuildRequest, files: TableFiles, strings: EncodedStrings, store: Path
) -> tuple[Layout, list[str]]:
    """Write all arrays of a new cache, rows as they stream by.

    Returns its layout, and what a reader of the scores should know of the rows.
    """
    layout = _layout(request, files, strings)
    cache = request.cache
    if files.base is not None:  # a cache keeps its codec
        cache = cache.model_copy(update={"codec": files.base.codec})
    writer = StoreWriter(store, layout, cache)
    for column in strings.columns:
        writer.add_strings(column.spec, column.table)
    scaling, remarks = _stream_rows(request, files, strings, layout, writer)
    writer.finish(scaling)
    return layout, remarks


def _layout(request: BuildRequest, files: TableFiles, strings: EncodedStrings) -> Layout:
    table = files.last
    return Layout(
        num_rows=files.num_rows,
        strings=tuple(column.spec for column in strings.columns),
        numeric=request.data.features,
        categories=table.categories,
        targets=table.targets,
        absent_targets=table.absent_targets,
        groups=table.vocabularies.groups,
        strata=table.strata,
        facets=table.facets,
        folds=table.folds,
    )


def _stream_rows(
    request: BuildRequest,
    files: TableFiles,
    strings: EncodedStrings,
    layout: Layout,
    writer: StoreWriter,
) -> tuple[Scaling, list[str]]:
    """Write all rows; return the statistics of those that train, and remarks on all."""
    remarks = RowRemarks(request.data, files.last, files.num_rows)
    train_rows = TrainStatistics(layout)
    bar = tqdm(total=files.num_rows, desc="writing rows", unit="row", unit_scale=True, disable=None)
    with bar:
        for block in files.rows(request.data, writer.rows_per_block):
            writer.add_rows(block)
            remarks.add(block)
            train_rows.add(block)
            bar.update(len(block.weight))
    tables = {column.spec.name: column.table for column in strings.columns}
    return train_rows.scaling(tables), remarks.lines(train_rows.fit)


@contextmanager
def _timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _stamps(files: tuple[str, ...]) -> dict[str, Stamp]:
    """Return the size and the time of change of each file, of a folder those of its parts."""
    found = {}
    for file in files:
        parts = parquet_files(Path(file)) if os.path.isdir(file) else [file]
        statuses = [os.stat(part) for part in parts]
        found[file] = tuple((status.st_size, status.st_mtime_ns) for status in statuses)
    return found


def _check_unchanged(stamps: dict[str, Stamp]) -> None:
    """Raise TableError for a file that is not as it was when its stamp was taken."""
    for file, stamp in stamps.items():
        if _stamps((file,))[file] != stamp:
            raise TableError(
                f"{file} was changed while it was being read; run the same command again"
            )
