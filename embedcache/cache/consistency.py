"""Checks that rows, strings and vectors belong to each other, by hashes stored with them.

A row names its string by a number, and a number says nothing of what it counts: were the strings of
a cache in another order than its rows assume, by a defect of ours, an interrupted copy or
somebody's script, every digest would be right and every prediction wrong. So a row also carries 64
bits of the sha256 of its own prepared text, taken from the table and not from the number; and each
string carries 64 bits over its text, tokens, vector and features. They are compared whenever rows
or strings are read. Two of 100,000 strings share a text hash with a probability of 3e-10.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from embedcache.cache.manifest import REBUILD
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import CorruptCacheError
from embedcache.table.strings import first_eight_bytes

MOST_NAMED = 5


def vector_hashes(
    texts: Sequence[str], tokens: TokenTable, embeddings: Tensor, features: Tensor
) -> Int64[np.ndarray, " S"]:
    """Return eight bytes of a sha256 over each string's text, tokens, vector and features."""
    values = tokens.values.numpy().astype("<i8")
    offsets = tokens.offsets.tolist()
    vectors, numbers = (
        np.ascontiguousarray(each.numpy(), dtype="<f4") for each in (embeddings, features)
    )
    return first_eight_bytes(
        [
            _digest(text, values[offsets[s] : offsets[s + 1]], vectors[s], numbers[s])
            for s, text in enumerate(texts)
        ]
    )


def state_hashes(texts: Sequence[str], tokens: TokenTable) -> Int64[np.ndarray, " S"]:
    """Return eight bytes of a sha256 over each string's text and its tokens' hidden states."""
    assert tokens.states is not None
    states = np.ascontiguousarray(tokens.states.numpy(), dtype="<f4")
    offsets = tokens.offsets.tolist()
    return first_eight_bytes(
        [_digest(text, states[offsets[s] : offsets[s + 1]]) for s, text in enumerate(texts)]
    )


def check_strings(
    path: Path,
    what: str,
    texts: Sequence[str],
    found: Int64[np.ndarray, " S"],
    stored: Int64[np.ndarray, " K"],
) -> None:
    """Raise CorruptCacheError naming the strings whose hash is not the stored one.

    `what` says what the hash ties to the text; where K is not S, all are named.
    """
    wrong = np.flatnonzero(found != stored) if len(found) == len(stored) else np.arange(len(texts))
    if len(wrong):
        named = ", ".join(f"{s} ({texts[s]:.60})" for s in wrong[:MOST_NAMED].tolist())
        raise CorruptCacheError(
            f"{path}: {what} of {len(wrong):,} of {len(texts):,} strings belong to other strings:"
            f" {named}{_more(wrong)}; {REBUILD}"
        )


def check_rows(
    path: Path,
    column: str,
    hashes: Int64[np.ndarray, " S"],
    string_id: Int32[np.ndarray, " N"],
    stored: Int64[np.ndarray, " N"],
    start: int,
) -> None:
    """Raise CorruptCacheError naming the rows whose `string_id` is not that of their own string.

    The first of these rows is row `start` of the cache.
    """
    outside = np.flatnonzero((string_id < 0) | (string_id >= len(hashes)))
    if len(outside):
        shown = outside[:MOST_NAMED].tolist()
        named = ", ".join(f"{start + row} (string {string_id[row]})" for row in shown)
        raise CorruptCacheError(
            f"{path}: {len(outside):,} rows name no string of '{column}', which has"
            f" {len(hashes):,}: rows {named}{_more(outside)}; {REBUILD}"
        )
    wrong = np.flatnonzero(hashes[string_id] != stored)
    if len(wrong):
        named = ", ".join(str(start + row) for row in wrong[:MOST_NAMED].tolist())
        raise CorruptCacheError(
            f"{path}: {len(wrong):,} rows name another string of '{column}' than their own: rows"
            f" {named}{_more(wrong)}; {REBUILD}"
        )


def check_codes(
    path: Path, column: str, num_values: int, codes: Int32[np.ndarray, " N"], start: int
) -> None:
    """Raise CorruptCacheError naming the rows whose code is of no value of a column.

    -1 is a row without a value. The first of these rows is row `start` of the cache.
    """
    outside = np.flatnonzero((codes < -1) | (codes >= num_values))
    if len(outside):
        shown = outside[:MOST_NAMED].tolist()
        named = ", ".join(f"{start + row} (code {codes[row]})" for row in shown)
        raise CorruptCacheError(
            f"{path}: {len(outside):,} rows have no value of '{column}', which has"
            f" {num_values:,}: rows {named}{_more(outside)}; {REBUILD}"
        )


def _digest(text: str, *arrays: np.ndarray) -> bytes:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(array)  # type: ignore[arg-type]  # numpy: a Buffer from Python 3.12 on
    return digest.digest()


def _more(wrong: np.ndarray) -> str:
    return ", ..." if len(wrong) > MOST_NAMED else ""
