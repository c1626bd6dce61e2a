"""The phases of one build, table -> splits -> distinct strings -> vectors -> rows and scaling,
which leave a sealed store in the partial folder.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from embedcache.build.files import Parts, read_parts
from embedcache.build.vectors import Encoded, VectorStore, cached_vectors
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION, Identity
from embedcache.cache.layout import Layout, StringSpec, StringTable
from embedcache.cache.publish import Places
from embedcache.cache.reader import Cache
from embedcache.cache.writer import StoreWriter
from embedcache.config import (
    SPLITS,
    CacheConfig,
    DataConfig,
    EncoderConfig,
    SplitConfig,
    StringColumn,
    TargetColumn,
)
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.prefix import check_layers
from embedcache.encoder.standin import is_standin
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import TableError
from embedcache.ranks import Ranks
from embedcache.scaling import Scaling, ScalingFit

PACKAGES = ("numpy", "polars", "zarr", "torch", "transformers", "rdkit", "scikit-learn")


@dataclass
class Build:
    """One build: its configuration, and what its phases leave for the next."""

    data: DataConfig
    targets: tuple[TargetColumn, ...]
    split: SplitConfig
    encoder: EncoderConfig
    cache: CacheConfig
    places: Places
    wanted: Identity
    old: Cache | None  # whose vectors need not be encoded again
    base: Cache | None  # whose rows come first: what is appended to
    ranks: Ranks
    seconds: dict[str, float] = field(default_factory=dict)
    unknown: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    encoded: Encoded = field(default_factory=Encoded)

    def run(self) -> None:
        """Leave a sealed store in the partial folder."""
        stamps = [_stamp(file) for file in self._new_files]
        with self._timed("table and split"):
            parts = read_parts(self.data, self.targets, self.split, self.base)
        with self._timed("strings"):
            specs, strings = self._strings(parts)
        table = parts.last
        layout = Layout(
            num_rows=parts.num_rows,
            strings=specs,
            numeric=self.data.numeric,
            categories=table.categories,
            targets=table.targets,
            absent_targets=table.absent_targets,
            groups=table.vocabularies.groups,
            strata=table.strata,
            facets=table.facets,
        )
        with self._timed("rows"):
            writer = StoreWriter(self.places.store, layout, self.cache)
            for name, string_table in strings.items():
                writer.add_strings(name, string_table)
            writer.finish(self._write_rows(writer, parts, strings))
        for file, stamp in zip(self._new_files, stamps, strict=True):
            if _stamp(file) != stamp:
                raise TableError(
                    f"{file} was changed while it was being read; run the same command again"
                )
        manifest.seal(self.places.store, self._attributes(layout, parts))

    @property
    def _new_files(self) -> tuple[str, ...]:
        return self.data.files[0 if self.base is None else len(self.base.identity.files) :]

    def _strings(self, parts: Parts) -> tuple[tuple[StringSpec, ...], dict[str, StringTable]]:
        """Return the tokens and vectors of all string columns; columns of one encoder share it and
        its vectors.
        """
        specs: dict[str, StringSpec] = {}
        tables: dict[str, StringTable] = {}
        columns_of: dict[str, list[StringColumn]] = {}
        for column in self.data.strings:
            columns_of.setdefault(encoding_key(column.encoder or self.encoder), []).append(column)
        for encoding, columns in columns_of.items():
            config = columns[0].encoder or self.encoder
            tokenizer, model = load_tokenizer(config), load_encoder(config).to(self.ranks.device)
            texts = {column.name: parts.last.strings[column.name].text for column in columns}
            tokens: dict[str, TokenTable] = {}
            for name, text in texts.items():
                tokens[name], self.unknown[name] = tokenize(tokenizer, text, model.max_length)
            vectors = VectorStore(
                config,
                model,
                self.places.vectors / encoding,
                cached_vectors(self.old, encoding),
                self.ranks,
            )
            self._encode(parts, texts, tokens, vectors)
            for column in columns:
                name, found = column.name, tokens[column.name]
                if config.prefix_layer is not None:
                    check_layers(model.model, config.prefix_layer)
                    found = replace(
                        found, states=self._states(parts, name, found, model, config.prefix_layer)
                    )
                embeddings, num_rows = (
                    torch.from_numpy(vectors.of(texts[name])),
                    torch.from_numpy(parts.rows_of_strings(name)),
                )
                tables[name] = StringTable(list(texts[name]), found, embeddings, num_rows)
                specs[name] = self._spec(column, tables[name], encoding)
        return tuple(specs[column.name] for column in self.data.strings), tables

    def _encode(
        self,
        parts: Parts,
        texts: dict[str, tuple[str, ...]],
        tokens: dict[str, TokenTable],
        vectors: VectorStore,
    ) -> None:
        """Encode what is not known yet; the strings of one file apart from those of the next, so
        that a batch does not depend on what is appended later.
        """
        for k in range(len(parts.files)):
            for name, text in texts.items():
                first, last = parts.num_strings(name)[k : k + 2]
                vectors.encode_missing(
                    text[first:last], tokens[name].take(torch.arange(first, last)), self.encoded
                )

    def _states(
        self, parts: Parts, name: str, tokens: TokenTable, model: StringEncoder, layer: int
    ) -> torch.Tensor:
        """Return the hidden states of all tokens that enter a layer, file by file as the vectors;
        those of the cache that is appended to are its own.
        """
        num_strings = parts.num_strings(name)
        spec = (
            None
            if parts.base is None
            else next(spec for spec in parts.base.layout.strings if spec.name == name)
        )
        states = []
        if spec is not None and spec.prefix_layer == layer:
            states.append(parts.base.strings(name, with_states=True).tokens.states)
        elif spec is not None:
            num_strings = [0, *num_strings]
        for first, last in pairwise(num_strings):
            if last > first:
                states.append(
                    model.states(
                        tokens.take(torch.arange(first, last)).to(self.ranks.device), layer
                    ).cpu()
                )
        return torch.cat(states)

    def _spec(self, column: StringColumn, strings: StringTable, encoding: str) -> StringSpec:
        config = column.encoder or self.encoder
        return StringSpec(
            name=column.name,
            column=column.column,
            kind=column.kind,
            num_strings=len(strings.text),
            width=strings.embeddings.shape[1],
            num_tokens=len(strings.tokens.values),
            pooling=config.pooling,
            encoder=config,
            encoding=encoding,
            standin=is_standin(config.source),
            prefix_layer=config.prefix_layer,
        )

    def _write_rows(
        self, writer: StoreWriter, parts: Parts, strings: dict[str, StringTable]
    ) -> Scaling:
        """Stream all rows into the store and return the statistics of those that train, and of
        their strings' vectors.
        """
        trained = [
            np.zeros(len(strings[column.name].text), dtype=bool) for column in self.data.strings
        ]
        fit = ScalingFit(
            [column.column for column in self.data.numeric],
            [column.transform for column in self.data.numeric],
            parts.last.targets,
        )
        bar = tqdm(
            total=parts.num_rows, desc="writing rows", unit="row", unit_scale=True, disable=None
        )
        with bar:
            for block in parts.rows(self.data, writer.rows_per_block):
                writer.add_rows(block)
                train = block.split == SPLITS.index("train")
                fit.add(block.numeric[train], block.targets[train])
                for seen, string_id in zip(trained, block.string_id[train].T, strict=True):
                    seen[string_id] = True
                bar.update(len(block.weight))
        return fit.result(
            {
                column.name: strings[column.name].embeddings.numpy()[seen]
                for column, seen in zip(self.data.strings, trained, strict=True)
            }
        )

    def _attributes(self, layout: Layout, parts: Parts) -> dict[str, Any]:
        """Return the root attributes of the new cache."""
        config = {
            "data": {
                **self.data.model_dump(mode="json"),
                "path": [Path(file).name for file in self.data.files],
            },
            "targets": [target.model_dump(mode="json") for target in self.targets],
            "split": self.split.model_dump(mode="json"),
            "encoder": self.encoder.model_dump(mode="json"),
        }
        versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}
        before = [] if self.base is None else self.base.provenance["rows_of_files"]
        rows_of_files = [*before, *(part.table.num_rows for part in parts.files)]
        built = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "format_version": FORMAT_VERSION,
            "identity": dict(self.wanted.parts),
            "layout": layout.model_dump(mode="json", exclude={"groups"}),
            "provenance": {
                "config": config,
                "versions": versions,
                "built": built,
                "rows_of_files": rows_of_files,
            },
            "report": self._report(parts),
        }

    def _report(self, parts: Parts) -> dict[str, Any]:
        """Return what a reader of the cache is told of this build."""
        before = {"num_excluded": 0, "merged": {}} if self.base is None else self.base.report
        merged: dict[str, dict[str, set[str]]] = {}
        for column in self.data.strings:
            spellings = merged.setdefault(column.name, defaultdict(set))
            for found in (
                before["merged"].get(column.name, {}),
                *(part.table.strings[column.name].merged for part in parts.files),
            ):
                for text, ways in found.items():
                    spellings[text].update(ways)
        return {
            "num_encoded": self.encoded.num_strings,
            "encoding": {"seconds": round(self.encoded.seconds, 3), "ranks": self.ranks.size},
            "num_excluded": before["num_excluded"]
            + sum(part.table.num_excluded for part in parts.files),
            "unknown": self.unknown,
            "merged": {
                name: {text: sorted(ways) for text, ways in found.items()}
                for name, found in merged.items()
            },
            "split": parts.tally.counts().model_dump(mode="json"),
            "seconds": [(phase, round(seconds, 3)) for phase, seconds in self.seconds.items()],
        }

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
