"""The stage from distinct strings to tokens and vectors: each string is encoded once.

Columns of one encoder share it and its vectors. The strings of one file are encoded apart from
those of the next, so that a batch, hence a vector's last bits, does not depend on what is appended
later.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.build.features import ColumnFeatures
from embedcache.build.files import TableFiles
from embedcache.build.request import BuildRequest
from embedcache.build.store import vector_store
from embedcache.build.vectors import StringVectors, cached_vectors
from embedcache.cache.layout import StringSpec, StringTable
from embedcache.cache.reader import Cache
from embedcache.config.columns import StringColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.prefix import check_layers
from embedcache.encoder.standin import is_standin
from embedcache.encoder.tokenizer import (
    Tokenized,
    load_tokenizer,
    tokenize,
    unreadable_strings,
)
from embedcache.encoder.tokens import TokenTable, no_tokens
from embedcache.encoder.unread import refuse_unread_dots
from embedcache.features.own import OwnTables
from embedcache.ranks import Ranks
from embedcache.saving import Saving, saving_of

UNREAD = "none"  # encoding key of columns that no encoder reads


@dataclass(frozen=True)
class EncodedColumn:
    """What the cache will hold of one string column."""

    spec: StringSpec
    table: StringTable
    unknown: Mapping[str, list[str]]  # string -> its parts that the tokenizer does not know


@dataclass(frozen=True)
class EncodedStrings:
    """All string columns, in the order of the config, and what encoding them took."""

    columns: tuple[EncodedColumn, ...]
    num_encoded: int
    num_stored: int  # whose vectors the store had
    seconds: float
    remarks: list[str]  # on the store

    def saving(self, num_rows: int) -> Saving | None:
        """Return what encoding each string once saves over all rows; None without strings."""
        num_cells: dict[tuple[str, str], int] = defaultdict(int)  # by encoder and text
        lengths: dict[tuple[str, str], int] = {}
        for column in self.columns:
            table = column.table
            for text, rows, length in zip(
                table.text, table.num_rows.tolist(), table.tokens.lengths.tolist(), strict=True
            ):
                num_cells[column.spec.encoding, text] += rows
                lengths[column.spec.encoding, text] = length
        counted = torch.tensor([*num_cells.values()]), torch.tensor([*lengths.values()])
        return saving_of([counted], num_rows, num_rows) if num_cells else None


def encode_strings(
    request: BuildRequest,
    files: TableFiles,
    features: Mapping[str, ColumnFeatures],
    old: Cache | None,
    folder: Path,
    ranks: Ranks,
) -> EncodedStrings:
    """Return the tokens, vectors and features of all string columns.

    Only strings are encoded whose vectors neither the `old` cache, nor the store of all builds, nor
    a killed build, in `folder`, has. Raises EncoderError and TokenizerError for an encoder that
    cannot be used.
    """
    columns_of: dict[str, list[StringColumn]] = defaultdict(list)
    for column in request.data.strings:
        config = request.encoder_of(column)
        columns_of[encoding_key(config) if config.reads else UNREAD].append(column)
    unread = columns_of.pop(UNREAD, [])
    groups = [
        _encode_columns(request, columns, encoding, files, features, old, folder, ranks)
        for encoding, columns in columns_of.items()
    ]
    encoded = {column.spec.name: column for group in groups for column in group.columns}
    encoded |= {
        column.name: _unread_column(request, column, files, features[column.name])
        for column in unread
    }
    return EncodedStrings(
        columns=tuple(encoded[column.name] for column in request.data.strings),
        num_encoded=sum(group.num_encoded for group in groups),
        num_stored=sum(group.num_stored for group in groups),
        seconds=sum((group.seconds for group in groups), start=0.0),
        remarks=[line for group in groups for line in group.remarks],
    )


def _encode_columns(
    request: BuildRequest,
    columns: list[StringColumn],
    encoding: str,
    files: TableFiles,
    features: Mapping[str, ColumnFeatures],
    old: Cache | None,
    folder: Path,
    ranks: Ranks,
) -> EncodedStrings:
    """Return the tokens, vectors and features of the columns of one encoder."""
    config = request.encoder_of(columns[0])
    model = load_encoder(config).to(ranks.device)
    for column in columns:
        layer = request.encoder_of(column).prefix_layer
        if layer is not None:
            check_layers(model.model, layer)  # before hours of encoding
    tokenized = _tokenized(columns, config, files, model)
    texts = list(
        dict.fromkeys(text for name in tokenized for text in files.last.strings[name].text)
    )
    known, store = cached_vectors(old, encoding), vector_store(request.cache, encoding)
    stored = store.find(set(texts) - known.keys(), model.width)
    vectors = StringVectors(config, model, folder / encoding, stored | known, ranks)
    _encode(files, tokenized, vectors)
    store.add(dict(zip(texts, vectors.of(texts), strict=True)), config.source)
    encoded = []
    for column in columns:
        config, found = request.encoder_of(column), tokenized[column.name]
        own = features[column.name]
        table = _string_table(files, column.name, found.tokens, vectors, own, config.prefix_layer)
        spec = _spec(column, config, table, encoding, own)
        encoded.append(EncodedColumn(spec, table, found.unknown))
    num_encoded = vectors.num_encoded
    return EncodedStrings(
        tuple(encoded), num_encoded, len(stored), vectors.seconds, list(store.remarks)
    )


def _unread_column(
    request: BuildRequest, column: StringColumn, files: TableFiles, features: ColumnFeatures
) -> EncodedColumn:
    """Return a column that no encoder reads: no tokens, vectors of width 0, and features."""
    texts = list(files.last.strings[column.name].text)
    table = StringTable(
        text=texts,
        tokens=no_tokens(len(texts)),
        embeddings=torch.zeros(len(texts), 0),
        num_rows=torch.from_numpy(files.rows_of_strings(column.name)),
        features=torch.from_numpy(features.values),
    )
    spec = _spec(column, request.encoder_of(column), table, UNREAD, features)
    return EncodedColumn(spec, table, {})


def unreadable(
    request: BuildRequest, own: OwnTables, column: StringColumn, texts: Sequence[str]
) -> dict[str, str]:
    """Return the strings of a column that its encoder cannot read, or a user's table of features
    lacks, with the reason.
    """
    config = request.encoder_of(column)
    lacking = own.unreadable(column, texts)
    if not config.reads:
        return lacking
    longest = load_encoder(config).max_length
    return lacking | unreadable_strings(load_tokenizer(config), column, texts, longest)


def _tokenized(
    columns: list[StringColumn], config: EncoderConfig, files: TableFiles, model: StringEncoder
) -> dict[str, Tokenized]:
    """Return the tokens of each column's strings, and the parts that the tokenizer lacks."""
    tokenizer = load_tokenizer(config)
    texts = {column.name: files.last.strings[column.name].text for column in columns}
    tokenized = {
        name: tokenize(tokenizer, texts[name], model.max_length, model.num_ids) for name in texts
    }
    for column in columns:
        refuse_unread_dots(column, tokenized[column.name].unknown)
    return tokenized


def _encode(files: TableFiles, tokenized: dict[str, Tokenized], vectors: StringVectors) -> None:
    """Encode what is not known yet, file by file."""
    for number in range(len(files.files)):
        for name, found in tokenized.items():
            first, last = files.num_strings(name)[number : number + 2]
            texts = files.last.strings[name].text[first:last]
            vectors.encode_missing(texts, found.tokens.take(torch.arange(first, last)))


def _string_table(
    files: TableFiles,
    name: str,
    tokens: TokenTable,
    vectors: StringVectors,
    features: ColumnFeatures,
    layer: int | None,
) -> StringTable:
    """Return a column's strings, all of whose vectors are known.

    They come with the hidden states that enter `layer`, unless it is None.
    """
    if layer is not None:
        tokens = replace(tokens, states=_states(files, name, tokens, vectors, layer))
    texts = list(files.last.strings[name].text)
    return StringTable(
        text=texts,
        tokens=tokens,
        embeddings=torch.from_numpy(vectors.of(texts)),
        num_rows=torch.from_numpy(files.rows_of_strings(name)),
        features=torch.from_numpy(features.values),
    )


def _states(
    files: TableFiles, name: str, tokens: TokenTable, vectors: StringVectors, layer: int
) -> Float[Tensor, "P E"]:
    """Return the hidden states of all tokens that enter a layer, file by file as the vectors.

    Those of the cache that is appended to are its own, if it has them.
    """
    edges = files.num_strings(name)
    states = []
    if files.base is not None and files.base.layout.strings_of(name).prefix_layer == layer:
        known = files.base.strings(name, with_states=True).tokens.states
        assert known is not None, f"the layout says that '{name}' has states"
        states.append(known)
    elif files.base is not None:
        edges = [0, *edges]
    for first, last in pairwise(edges):
        if last > first:
            some = tokens.take(torch.arange(first, last)).to(vectors.ranks.device)
            states.append(vectors.encoder.states(some, layer).cpu())
    return torch.cat(states)


def _spec(
    column: StringColumn,
    config: EncoderConfig,
    table: StringTable,
    encoding: str,
    features: ColumnFeatures,
) -> StringSpec:
    return StringSpec(
        name=column.name,
        column=column.column,
        kind=column.kind,
        num_strings=len(table.text),
        width=table.embeddings.shape[1],
        num_tokens=len(table.tokens.values),
        pooling=config.pooling,
        encoder=config,
        encoding=encoding,
        standin=config.reads and is_standin(config.source),
        prefix_layer=config.prefix_layer,
        features=features.sets,
    )
