"""The distinct strings of one column: what is encoded once, and which of them each row has.

A table spells a string in one or several ways (`*CC*` and `[*]CC[*]`; with `canonicalize` any valid
order of atoms). Spellings that prepare to the same text share one string id, hence one encoding and
one gradient. Ids follow the sorted texts, so that they do not depend on the order of rows; where a
file is appended, the strings that were there keep their ids, and the new ones come after them,
sorted among themselves.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Int64
from tqdm import tqdm

from embedcache.config.columns import StringColumn
from embedcache.table.psmiles import prepare_string
from embedcache.table.vocabulary import followed_by

MANY = 2_000  # spellings; preparing fewer takes well under two seconds and needs no progress bar


@dataclass(frozen=True)
class DistinctStrings:
    """S distinct prepared strings in the order of their ids, and one file's R spellings of them."""

    text: tuple[str, ...]
    num_rows: Int64[np.ndarray, " S"]  # of this file
    spellings: tuple[str, ...]
    id_of_spelling: Int32[np.ndarray, " R"]
    # of what it prepares to, not of what its id names: see `cache.consistency`
    hash_of_spelling: Int64[np.ndarray, " R"]

    @property
    def merged(self) -> dict[str, tuple[str, ...]]:
        """The strings that the table spells in more than one way, with these spellings."""
        found: dict[str, list[str]] = defaultdict(list)
        for spelling, string_id in zip(self.spellings, self.id_of_spelling.tolist(), strict=True):
            found[self.text[string_id]].append(spelling)
        return {text: tuple(spellings) for text, spellings in found.items() if len(spellings) > 1}


def distinct_strings(
    column: StringColumn,
    spellings: Sequence[str],
    num_rows: Int[np.ndarray, " R"],
    known: tuple[str, ...] = (),
) -> tuple[DistinctStrings, dict[str, str]]:
    """Return the distinct strings behind R spellings, and the refused spellings with their reasons.

    `num_rows` are the spellings' rows; `known` are the strings of the files before this one, in the
    order of their ids.
    """
    prepared: dict[str, str] = {}
    refused: dict[str, str] = {}
    hidden = None if len(spellings) > MANY else True
    for spelling in tqdm(spellings, desc=f"checking {column.name}", disable=hidden):
        try:
            prepared[spelling] = prepare_string(spelling, column)
        except ValueError as reason:
            refused[spelling] = str(reason)
    text = followed_by(known, prepared.values())
    id_of_text = {string: string_id for string_id, string in enumerate(text)}
    kept = [row for row, spelling in enumerate(spellings) if spelling in prepared]
    texts = [prepared[spellings[row]] for row in kept]
    ids = np.array([id_of_text[string] for string in texts], dtype=np.int32)
    rows = num_rows[np.array(kept, dtype=np.int64)]
    strings = DistinctStrings(
        text=text,
        num_rows=np.bincount(ids, weights=rows, minlength=len(text)).astype(np.int64),
        spellings=tuple(spellings[row] for row in kept),
        id_of_spelling=ids,
        hash_of_spelling=text_hashes(texts),
    )
    return strings, refused


def text_hashes(texts: Sequence[str]) -> Int64[np.ndarray, " S"]:
    """Return the first eight bytes of each text's sha256, as a little-endian integer."""
    return first_eight_bytes([hashlib.sha256(text.encode()).digest() for text in texts])


def first_eight_bytes(digests: list[bytes]) -> Int64[np.ndarray, " S"]:
    """Return the first eight bytes of each digest, as a little-endian integer."""
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype="<i8").astype(np.int64)
