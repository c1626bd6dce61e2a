"""Phase 1 in order: table -> splits -> distinct strings -> vectors -> rows and scaling ==> cache.zarr.

Everything that can be wrong with the user's table, config or encoder is found before the first row is written. The encoder sees each distinct
string once; rows stream through in blocks, so memory does not grow with the table. See `publish` for what a kill or a second builder meets.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from embedcache import manifest
from embedcache.config import CacheConfig, DataConfig, EncoderConfig, SplitConfig, StringColumn, TargetColumn
from embedcache.dealing import Deal, deal
from embedcache.encoder import load_encoder
from embedcache.errors import CacheError, CorruptCacheError, MissingCacheError, StaleCacheError, TableError
from embedcache.fingerprint import FORMAT_VERSION, Identity, encoding_key, wanted_identity
from embedcache.prefix import check_layers
from embedcache.publish import Places, builder_lock, clean_up, discard_store, publish, recover
from embedcache.report import BuildReport
from embedcache.rows import row_blocks
from embedcache.scaling import Scaling, ScalingFit
from embedcache.splits import SPLITS
from embedcache.standin import is_standin
from embedcache.store import Cache, Layout, StringSpec, StringTable, open_cache
from embedcache.strings import DistinctStrings
from embedcache.table import Table, read_table
from embedcache.tokens import load_tokenizer, tokenize
from embedcache.vectors import Known, cached_vectors, encode_missing, saved_vectors, stacked
from embedcache.writer import StoreWriter

PACKAGES = ("numpy", "polars", "zarr", "torch", "transformers", "rdkit", "scikit-learn")


def build_cache(
    data: DataConfig, targets: tuple[TargetColumn, ...], split: SplitConfig, encoder: EncoderConfig, cache: CacheConfig, overwrite: bool = False
) -> BuildReport:
    """Build the cache of a config at `cache.path`, unless it is there already, and return what it holds.

    Raises TableError, SplitError, EncoderError and TokenizerError for what is wrong with the input, StaleCacheError where a cache of another identity
    is in the way and `overwrite` is not set, BusyCacheError where another process builds it, CacheError where the disk is full. After any error or
    kill the cache that was there before is still there.
    """
    places = Places.of(cache.path)
    wanted = wanted_identity(data, targets, split, encoder)
    with builder_lock(places):
        recover(places)
        found = _cache_in_the_way(places, wanted, overwrite)
        if found is not None and found.identity == wanted and has_states(found, data, encoder):
            clean_up(places)
            return BuildReport.of(found, "up to date")
        if not _is_finished(places, wanted, data, encoder):
            _Build(data, targets, split, encoder, cache, places, wanted, found).run()
        publish(places)
        return BuildReport.of(open_cache(places.path), "built")


def _cache_in_the_way(places: Places, wanted: Identity, overwrite: bool) -> Cache | None:
    """Return the sound cache at the path, if any; raises unless it may stay or be replaced."""
    try:
        found = open_cache(places.path)
        if overwrite:
            found.verify()
    except MissingCacheError:
        if places.path.exists() and (not places.path.is_dir() or any(places.path.iterdir())):
            raise CacheError(f"{places.path} exists and is not a cache of this project; it is left alone: choose another cache.path") from None
        return None
    except (CorruptCacheError, StaleCacheError):
        if overwrite:
            return None
        raise
    if found.identity != wanted and not overwrite:
        lines = "\n".join(f"  - {line}" for line in found.identity.difference(wanted))
        raise StaleCacheError(
            f"{places.path} was built from something else ({found.identity.short}) than this config asks for ({wanted.short}):\n{lines}\n"
            f"Run the same command with --overwrite to replace it, or set another cache.path"
        )
    return found


def has_states(cache: Cache, data: DataConfig, encoder: EncoderConfig) -> bool:
    """Whether the cache has the hidden states that the encoding mode asks for. They are no part of its identity: other modes share the cache."""
    wanted = {column.name: (column.encoder or encoder).prefix_layer for column in data.strings}
    return all(wanted[spec.name] in (None, spec.prefix_layer) for spec in cache.layout.strings)


def _is_finished(places: Places, wanted: Identity, data: DataConfig, encoder: EncoderConfig) -> bool:
    """Whether a killed build left the wanted cache complete, but unpublished; any other is discarded."""
    try:
        finished = open_cache(places.store)
        finished.verify()
    except (MissingCacheError, CorruptCacheError, StaleCacheError):
        discard_store(places)
        return False
    sound = finished.identity == wanted and has_states(finished, data, encoder)
    if not sound:
        discard_store(places)
    return sound


@dataclass
class _Build:
    """One build: its configuration, and what its phases leave for the next."""

    data: DataConfig
    targets: tuple[TargetColumn, ...]
    split: SplitConfig
    encoder: EncoderConfig
    cache: CacheConfig
    places: Places
    wanted: Identity
    old: Cache | None
    seconds: dict[str, float] = field(default_factory=dict)
    unknown: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    num_encoded: int = 0

    def run(self) -> None:
        """Leave a sealed store in the partial folder."""
        stamp = _stamp(Path(self.data.path))
        with self._timed("table"):
            table = read_table(self.data, self.targets, self.split)
        with self._timed("split"):
            dealt, split_report = deal(table, self.data, self.split)
        with self._timed("strings"):
            specs, strings = self._strings(table)
        layout = Layout(
            num_rows=table.num_rows,
            strings=specs,
            numeric=self.data.numeric,
            categories=table.categories,
            targets=table.targets,
            absent_targets=table.absent_targets,
            groups=() if table.groups is None else table.groups.values,
            facets=table.facets,
        )
        with self._timed("rows"):
            writer = StoreWriter(self.places.store, layout, self.cache)
            for name, string_table in strings.items():
                writer.add_strings(name, string_table)
            writer.finish(self._write_rows(writer, table, dealt))
        if _stamp(Path(self.data.path)) != stamp:
            raise TableError(f"{self.data.path} was changed while it was being read; run the same command again")
        report = {
            "num_encoded": self.num_encoded,
            "num_excluded": table.num_excluded,
            "unknown": self.unknown,
            "merged": {name: found.merged for name, found in table.strings.items()},
            "split": asdict(split_report),
            "seconds": [(phase, round(seconds, 3)) for phase, seconds in self.seconds.items()],
        }
        manifest.seal(self.places.store, self._attributes(layout, report))

    def _strings(self, table: Table) -> tuple[tuple[StringSpec, ...], dict[str, StringTable]]:
        """Return the tokens and vectors of all string columns; columns of one encoder share it and its vectors."""
        specs: list[StringSpec] = []
        tables: dict[str, StringTable] = {}
        columns_of: dict[str, list[StringColumn]] = {}
        for column in self.data.strings:
            columns_of.setdefault(encoding_key(column.encoder or self.encoder), []).append(column)
        for encoding, columns in columns_of.items():
            config = columns[0].encoder or self.encoder
            tokenizer, model = load_tokenizer(config), load_encoder(config)
            folder = self.places.vectors / encoding
            known: Known = saved_vectors(folder) | cached_vectors(self.old, encoding)
            for column in columns:
                found = table.strings[column.name]
                tokens, self.unknown[column.name] = tokenize(tokenizer, found.text, model.max_length)
                self.num_encoded += encode_missing(found.text, tokens, model, known, folder)
                layer = config.prefix_layer
                if layer is not None:
                    check_layers(model.model, layer)
                    tokens = replace(tokens, states=model.states(tokens, layer))
                vectors = torch.from_numpy(stacked(found.text, known))
                tables[column.name] = StringTable(list(found.text), tokens, vectors, torch.from_numpy(found.num_rows))
                specs.append(self._spec(column, found, tables[column.name], encoding))
        order = [column.name for column in self.data.strings]
        return tuple(sorted(specs, key=lambda spec: order.index(spec.name))), tables

    def _spec(self, column: StringColumn, found: DistinctStrings, strings: StringTable, encoding: str) -> StringSpec:
        config = column.encoder or self.encoder
        return StringSpec(
            name=column.name,
            column=column.column,
            kind=column.kind,
            num_strings=len(found.text),
            width=strings.embeddings.shape[1],
            num_tokens=len(strings.tokens.values),
            pooling=config.pooling,
            encoder=config,
            encoding=encoding,
            standin=is_standin(config.source),
            prefix_layer=config.prefix_layer,
        )

    def _write_rows(self, writer: StoreWriter, table: Table, dealt: Deal) -> Scaling:
        """Stream all rows into the store and return the statistics of those that train."""
        fit = ScalingFit([column.column for column in self.data.numeric], [column.transform for column in self.data.numeric], table.targets)
        bar = tqdm(total=table.num_rows, desc="writing rows", unit="row", unit_scale=True, disable=None)
        with bar:
            for block in row_blocks(table, self.data, dealt, writer.rows_per_block):
                writer.add_rows(block)
                train = block.split == SPLITS.index("train")
                fit.add(block.numeric[train], block.targets[train])
                bar.update(len(block.weight))
        return fit.result()

    def _attributes(self, layout: Layout, report: dict[str, Any]) -> dict[str, Any]:
        """Return the root attributes of the new cache."""
        config = {
            "data": {**self.data.model_dump(mode="json"), "path": Path(self.data.path).name},
            "targets": [target.model_dump(mode="json") for target in self.targets],
            "split": self.split.model_dump(mode="json"),
            "encoder": self.encoder.model_dump(mode="json"),
        }
        versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
        return {
            "format_version": FORMAT_VERSION,
            "identity": dict(self.wanted.parts),
            "layout": layout.model_dump(mode="json", exclude={"groups"}),
            "provenance": {"config": config, "versions": versions, "built": datetime.now(UTC).isoformat(timespec="seconds")},
            "report": report,
        }

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _stamp(file: Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
