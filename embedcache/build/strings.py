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

from embedcache.build.files import TableFiles
from embedcache.build.request import BuildRequest
from embedcache.build.vectors import VectorStore, cached_vectors
from embedcache.cache.layout import StringSpec, StringTable
from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.config.table import StringColumn
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
from embedcache.encoder.tokens import TokenTable
from embedcache.encoder.unread import refuse_unread_dots
from embedcache.ranks import Ranks


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
    seconds: float


def encode_strings(
    request: BuildRequest, files: TableFiles, old: Cache | None, folder: Path, ranks: Ranks
) -> EncodedStrings:
    """Return the tokens and vectors of all string columns.

    Only strings are encoded whose vectors neither the `old` cache nor a killed build, in `folder`,
    has. Raises EncoderError and TokenizerError for an encoder that cannot be used.
    """
    columns_of: dict[str, list[StringColumn]] = defaultdict(list)
    for column in request.data.strings:
        columns_of[encoding_key(request.encoder_of(column))].append(column)
    encoded: dict[str, EncodedColumn] = {}
    stores = []
    for encoding, columns in columns_of.items():
        config = request.encoder_of(columns[0])
        model = load_encoder(config).to(ranks.device)
        known = cached_vectors(old, encoding)
        vectors = VectorStore(config, model, folder / encoding, known, ranks)
        tokenized = _tokenized(columns, config, files, model)
        _encode(files, tokenized, vectors)
        for column in columns:
            config, found = request.encoder_of(column), tokenized[column.name]
            table = _string_table(files, column.name, found.tokens, vectors, config.prefix_layer)
            spec = _spec(column, config, table, encoding)
            encoded[column.name] = EncodedColumn(spec, table, found.unknown)
        stores.append(vectors)
    return EncodedStrings(
        columns=tuple(encoded[column.name] for column in request.data.strings),
        num_encoded=sum(vectors.num_encoded for vectors in stores),
        seconds=sum((vectors.seconds for vectors in stores), start=0.0),
    )


def unreadable(request: BuildRequest, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
    """Return the strings of a column that its encoder cannot read, with the reason."""
    config = request.encoder_of(column)
    longest = load_encoder(config).max_length
    return unreadable_strings(load_tokenizer(config), column, texts, longest)


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


def _encode(files: TableFiles, tokenized: dict[str, Tokenized], vectors: VectorStore) -> None:
    """Encode what is not known yet, file by file."""
    for number in range(len(files.files)):
        for name, found in tokenized.items():
            first, last = files.num_strings(name)[number : number + 2]
            texts = files.last.strings[name].text[first:last]
            vectors.encode_missing(texts, found.tokens.take(torch.arange(first, last)))


def _string_table(
    files: TableFiles, name: str, tokens: TokenTable, vectors: VectorStore, layer: int | None
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
    )


def _states(
    files: TableFiles, name: str, tokens: TokenTable, vectors: VectorStore, layer: int
) -> Float[Tensor, "P E"]:
    """Return the hidden states of all tokens that enter a layer, file by file as the vectors.

    Those of the cache that is appended to are its own, if it has them.
    """
    check_layers(vectors.encoder.model, layer)
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
    column: StringColumn, config: EncoderConfig, table: StringTable, encoding: str
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
        standin=is_standin(config.source),
        prefix_layer=config.prefix_layer,
    )
