"""Encoding distinct strings once, and keeping what was encoded.

Encoding is the dear part of a build with many strings: hours, where the rows take seconds. So vectors are written to the partial folder piece by
piece, and are known by their text and their encoding key (encoder weights, tokenizer, pooling). A build that was killed goes on where it was; a
build of an edited table, of another split, or over an old cache finds the strings that it shares with it, and encodes only the new ones.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from tqdm import tqdm

from embedcache.encoder import StringEncoder, encode_all
from embedcache.errors import CacheError, EncoderError
from embedcache.store import Cache
from embedcache.tokens import TokenTable

PIECE = 512  # strings per file: at most this much is encoded again after a kill

Known = dict[str, np.ndarray]  # text -> vector [E]


def saved_vectors(folder: Path) -> Known:
    """Return the vectors that earlier builds left in a folder; a piece that is damaged is deleted, and encoded again."""
    known: Known = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as piece:
                known.update(zip(piece["text"].tolist(), piece["vectors"], strict=True))
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
            file.unlink()
    return known


def cached_vectors(cache: Cache | None, encoding: str) -> Known:
    """Return the vectors in a cache that have this encoding key; none from a column that is damaged."""
    known: Known = {}
    for spec in cache.layout.strings if cache is not None else ():
        if spec.encoding != encoding:
            continue
        try:
            strings = cache.strings(spec.name)
        except CacheError:
            continue
        known.update(zip(strings.text, strings.embeddings.numpy(), strict=True))
    return known


def encode_missing(texts: Sequence[str], tokens: TokenTable, encoder: StringEncoder, known: Known, folder: Path) -> int:
    """Encode the strings that `known` lacks, add them to it, save them to `folder`, and return their number."""
    missing = [s for s, text in enumerate(texts) if text not in known]
    missing.sort(key=tokens.lengths.tolist().__getitem__)  # pieces of like length waste no padding
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob("*.npz"))
    bar = tqdm(total=len(missing), desc="encoding strings", unit="string", disable=None if missing else True)
    with bar:
        for first in range(0, len(missing), PIECE):
            ids = missing[first : first + PIECE]
            vectors = encode_all(encoder, tokens.take(torch.tensor(ids)))
            _refuse_non_finite(vectors, [texts[s] for s in ids])
            while (folder / f"{number:06d}.npz").exists():
                number += 1
            _save_piece(folder / f"{number:06d}.npz", [texts[s] for s in ids], vectors)
            known.update(zip([texts[s] for s in ids], vectors, strict=True))
            bar.update(len(ids))
    return len(missing)


def stacked(texts: Sequence[str], known: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "S E"]:
    """Return the vectors of these strings in their order."""
    return np.stack([known[text] for text in texts]).astype(np.float32)


def _save_piece(file: Path, texts: list[str], vectors: np.ndarray) -> None:
    draft = file.with_suffix(".draft")
    with draft.open("wb") as stream:
        np.savez(stream, text=np.array(texts), vectors=vectors)
    draft.replace(file)


def _refuse_non_finite(vectors: np.ndarray, texts: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        raise EncoderError(f"the encoder gives non-finite vectors for {len(broken)} strings, e.g. {texts[broken[0]]!r:.120}; its weights are damaged")
