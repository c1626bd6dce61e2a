"""Encoding distinct strings once, on one rank or several, and keeping what was encoded.

Encoding dominates the time of a build with many strings: hours, where the rows take seconds. So
vectors are written to the partial folder piece by piece, and are found again by their text and
their encoding key (encoder weights, tokenizer, pooling). A build that was killed goes on where it
was, with as many ranks as it then has; a build of an edited table, of another split, or over an old
cache finds the strings that it shares with it, and encodes only the new ones. What other builds
have encoded is found in the store that all share (`build.store`).

Which strings share a batch decides the last bits of their vectors. Batches are planned over the
strings that neither an old cache nor the store has, before they are assigned to ranks, and a piece
holds whole batches: so neither the number of ranks nor a kill changes a bit, on machines and thread
counts that are alike.
"""

import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor
from tqdm import tqdm

from embedcache.build.store import VectorsByText
from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.batching import BATCH_OVERHEAD_TOKENS, MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import CacheError, EncoderError, RankError, UserError
from embedcache.files import atomic_write
from embedcache.ranks import Ranks

PIECE = 512  # strings per file: about this much is encoded again after a kill


@dataclass(frozen=True)
class Work:
    """Strings to encode, in whole batches, assigned to ranks."""

    encoder: EncoderConfig
    folder: Path
    texts: tuple[str, ...]
    tokens: TokenTable
    shares: tuple[tuple[Tensor, ...], ...]  # by rank: its batches, each of indices of texts


@dataclass(frozen=True)
class Finished:
    """There is nothing more to encode; the ranks end with this exit code."""

    exit_code: int


def saved_vectors(folder: Path) -> VectorsByText:
    """Return the vectors that earlier builds left in a folder.

    A damaged piece is deleted, so that its strings are encoded again.
    """
    vectors: VectorsByText = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as piece:
                vectors.update(zip(piece["text"].tolist(), piece["vectors"], strict=True))
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
            file.unlink()
    return vectors


def cached_vectors(cache: Cache | None, encoding: str) -> VectorsByText:
    """Return the vectors in a cache that have this encoding key, none of a damaged column."""
    vectors: VectorsByText = {}
    if cache is None:
        return vectors
    for spec in cache.layout.strings:
        if spec.encoding != encoding:
            continue
        try:
            strings = cache.strings(spec.name)
        except CacheError:
            continue
        vectors.update(zip(strings.text, strings.embeddings.numpy(), strict=True))
    return vectors


@dataclass
class StringVectors:
    """The vectors of one encoder: those known before, and those in the partial folder."""

    config: EncoderConfig
    encoder: StringEncoder
    folder: Path
    known: VectorsByText  # of an old cache, or of the store that all builds share
    ranks: Ranks
    num_encoded: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Read what earlier builds left."""
        self._saved = saved_vectors(self.folder)

    def of(self, texts: Sequence[str]) -> Float32[np.ndarray, "S E"]:
        """Return the vectors of strings that are all known, in their order."""
        return np.stack(
            [self.known[text] if text in self.known else self._saved[text] for text in texts]
        ).astype(np.float32)

    def encode_missing(self, texts: Sequence[str], tokens: TokenTable) -> None:
        """Encode the strings whose vectors are not known yet, on all ranks."""
        batches = self._missing_batches(texts, tokens)
        if not batches:
            return
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.ranks.broadcast(self._work(texts, tokens, batches))
        _raise_first(self.ranks.gather(_encode_share(work, self.encoder, self.ranks)))
        self._saved |= saved_vectors(self.folder)
        absent = [text for text in work.texts if text not in self._saved]
        if absent:
            raise RankError(
                f"{len(absent)} strings that another rank encoded are not in {self.folder};"
                " cache.path must lie on a disk that all ranks share"
            )
        self.num_encoded += len(work.texts)
        self.seconds += time.perf_counter() - started

    def _missing_batches(self, texts: Sequence[str], tokens: TokenTable) -> list[list[int]]:
        """Return what is missing of each batch of the strings that were not known before.

        All of it is missing, or nothing, unless an interrupted build was of other strings.
        """
        fresh = torch.tensor(
            [s for s, text in enumerate(texts) if text not in self.known], dtype=torch.int64
        )
        planned = length_batches(tokens.lengths[fresh], MAX_BATCH_TOKENS) if len(fresh) else []
        batches = [fresh[some].tolist() for batch in planned for some in batch.split(PIECE)]
        missing = ([s for s in batch if texts[s] not in self._saved] for batch in batches)
        return [batch for batch in missing if batch]

    def _work(self, texts: Sequence[str], tokens: TokenTable, batches: list[list[int]]) -> Work:
        """Return the strings of these batches alone, for only what is encoded should travel."""
        wanted = [s for batch in batches for s in batch]
        work_tokens = tokens.take(torch.tensor(wanted))
        renumbered = torch.arange(len(wanted)).split([len(batch) for batch in batches])
        shares = assigned_batches(renumbered, work_tokens.lengths, self.ranks.size)
        work_texts = tuple(texts[s] for s in wanted)
        return Work(self.config, self.folder, work_texts, work_tokens, shares)


def assigned_batches(
    batches: Sequence[Int[Tensor, " _"]], lengths: Int[Tensor, " S"], size: int
) -> tuple[tuple[Int[Tensor, " _"], ...], ...]:
    """Return the batches of each of `size` ranks, each rank's shortest strings first.

    Costs are nearly equal: the most expensive batch left goes to the rank with the least to do.
    """
    costs = [len(batch) * int(lengths[batch].max()) + BATCH_OVERHEAD_TOKENS for batch in batches]
    load = [0] * size
    numbers_of: list[list[int]] = [[] for _ in range(size)]
    for number in sorted(range(len(batches)), key=lambda number: -costs[number]):
        rank = load.index(min(load))
        load[rank] += costs[number]
        numbers_of[rank].append(number)
    return tuple(tuple(batches[number] for number in sorted(numbers)) for numbers in numbers_of)


def serve(ranks: Ranks) -> int:
    """Encode what rank 0 asks for until it is finished; return the exit code of this rank."""
    config, encoder = None, None
    while not isinstance(work := ranks.broadcast(None), Finished):
        failure: Exception | None = None
        try:
            if work.encoder != config:
                config, encoder = work.encoder, load_encoder(work.encoder).to(ranks.device)
        except UserError as error:
            failure = error
        # rank 0 says what went wrong, once
        if encoder is None or failure is not None:
            ranks.gather(failure)
        else:
            ranks.gather(_encode_share(work, encoder, ranks))
    return work.exit_code


def _encode_share(work: Work, encoder: StringEncoder, ranks: Ranks) -> Exception | None:
    """Encode this rank's batches and save them piece by piece.

    Returns what went wrong, for all ranks to know.
    """
    share = work.shares[ranks.rank]
    try:
        with _bar(sum(len(batch) for batch in share), ranks) as bar:
            for piece in _pieces(share):
                vectors = []
                for batch in piece:
                    vectors.append(encode_all(encoder, work.tokens.take(batch), progress=False))
                    _refuse_non_finite(vectors[-1], [work.texts[s] for s in batch.tolist()])
                    bar.update(len(batch))
                file = free_name(work.folder, ranks.rank)
                texts = [work.texts[s] for s in torch.cat(piece).tolist()]
                save_piece(file, texts, np.concatenate(vectors))
    except (UserError, OSError) as error:
        return error
    return None


def _pieces(batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield consecutive batches together: PIECE strings or a few more, the last perhaps fewer."""
    piece: list[Tensor] = []
    for batch in batches:
        piece.append(batch)
        if sum(len(batch) for batch in piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _bar(num_strings: int, ranks: Ranks) -> tqdm:
    """Return the progress bar of this rank's share; rank 0 alone shows its own."""
    whose = "" if ranks.size == 1 else f" (rank {ranks.rank} of {ranks.size})"
    is_shown = num_strings and ranks.rank == 0
    return tqdm(
        total=num_strings,
        desc=f"encoding strings{whose}",
        unit="string",
        disable=None if is_shown else True,
    )


def _raise_first(failures: list[Exception | None]) -> None:
    """Raise the failure of the lowest rank that has one.

    A system error keeps its number, which says whether the disk is full.
    """
    for rank, failure in enumerate(failures):
        if failure is not None and rank == 0:
            raise failure
        if isinstance(failure, OSError):
            raise OSError(failure.errno, f"rank {rank}: {failure.strerror}")
        if failure is not None:
            raise type(failure)(f"rank {rank}: {failure}")


def free_name(folder: Path, rank: int) -> Path:
    """Return the name of a piece that no other process writes."""
    number = len(list(folder.glob("*.npz")))
    while (file := folder / f"{number:06d}-{rank}-{os.getpid()}.npz").exists():
        number += 1
    return file


def save_piece(file: Path, texts: list[str], vectors: np.ndarray) -> None:
    """Write the vectors of some strings, for `saved_vectors` to find."""
    # a stream: for a path np.savez would choose a name that ends in .npz
    with atomic_write(file) as partial, partial.open("wb") as stream:
        np.savez(stream, text=np.array(texts), vectors=vectors)


def _refuse_non_finite(vectors: np.ndarray, texts: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        raise EncoderError(
            f"the encoder gives non-finite vectors for {len(broken)} strings, e.g."
            f" {texts[broken[0]]!r:.120}; its weights are damaged"
        )
