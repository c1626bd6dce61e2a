"""Encoding distinct strings once, on one rank or several, and keeping what was encoded.

Encoding is the dear part of a build with many strings: hours, where the rows take seconds. So
vectors are written to the partial folder piece by piece, and are known by their text and their
encoding key (encoder weights, tokenizer, pooling). A build that was killed goes on where it was,
with as many ranks as it then has; a build of an edited table, of another split, or over an old
cache finds the strings that it shares with it, and encodes only the new ones.

Which strings share a batch decides the last bits of their vectors. Batches are planned over the
strings that no cache has, before they are dealt to ranks, and a piece holds whole batches: so
neither the number of ranks nor a kill changes a bit, on machines and thread counts that are alike.
"""

import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor
from tqdm import tqdm

from embedcache.cache.reader import Cache
from embedcache.config import EncoderConfig
from embedcache.encoder.batching import BATCH_OVERHEAD_TOKENS, MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import CacheError, EncoderError, RankError, UserError
from embedcache.files import atomic_write
from embedcache.ranks import Ranks

PIECE = 512  # strings per file: about this much is encoded again after a kill
Known = dict[str, np.ndarray]  # text -> vector [E]


@dataclass(frozen=True)
class Work:
    """Strings to encode, in whole batches, dealt to ranks."""

    encoder: EncoderConfig
    folder: Path
    texts: tuple[str, ...]
    tokens: TokenTable
    shares: tuple[tuple[Tensor, ...], ...]  # by rank: the string numbers of its batches


@dataclass(frozen=True)
class Finished:
    """There is nothing more to encode; the ranks end with this exit code."""

    exit_code: int


@dataclass
class Encoded:
    """What a build has encoded so far."""

    num_strings: int = 0
    seconds: float = 0.0


def saved_vectors(folder: Path) -> Known:
    """Return the vectors that earlier builds left in a folder; a piece that is damaged is deleted,
    and encoded again.
    """
    known: Known = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as piece:
                known.update(zip(piece["text"].tolist(), piece["vectors"], strict=True))
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
            file.unlink()
    return known


def cached_vectors(cache: Cache | None, encoding: str) -> Known:
    """Return the vectors in a cache that have this encoding key; none from a column that is
    damaged.
    """
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


@dataclass
class VectorStore:
    """The vectors of one encoder: those of the old cache, and those that lie in the partial
    folder.
    """

    config: EncoderConfig
    encoder: StringEncoder
    folder: Path
    cached: Known
    ranks: Ranks

    def __post_init__(self) -> None:
        """Read what earlier builds left."""
        self._saved = saved_vectors(self.folder)

    def of(self, texts: Sequence[str]) -> Float32[np.ndarray, "S E"]:
        """Return the vectors of strings that are all known, in their order."""
        return np.stack(
            [self.cached[text] if text in self.cached else self._saved[text] for text in texts]
        ).astype(np.float32)

    def encode_missing(self, texts: Sequence[str], tokens: TokenTable, encoded: Encoded) -> None:
        """Encode the strings whose vectors are not known yet, on all ranks."""
        batches = [torch.tensor(batch) for batch in self._missing_batches(texts, tokens)]
        if not batches:
            return
        started, num_missing = time.perf_counter(), sum(len(batch) for batch in batches)
        self.folder.mkdir(parents=True, exist_ok=True)
        # only what is encoded travels
        wanted = torch.cat(batches)
        work_tokens = tokens.take(wanted)
        places = torch.arange(len(wanted)).split([len(batch) for batch in batches])
        shares = dealt_batches(places, work_tokens.lengths, self.ranks.size)
        work = self.ranks.broadcast(
            Work(
                self.config,
                self.folder,
                tuple(texts[s] for s in wanted.tolist()),
                work_tokens,
                shares,
            )
        )
        _raise_first(self.ranks.gather(_encode_share(work, self.encoder, self.ranks)))
        self._saved |= saved_vectors(self.folder)
        absent = [text for text in work.texts if text not in self._saved]
        if absent:
            raise RankError(
                f"{len(absent)} strings that another rank encoded are not in {self.folder};"
                " cache.path must lie on a disk that all ranks share"
            )
        encoded.num_strings += num_missing
        encoded.seconds += time.perf_counter() - started

    def _missing_batches(self, texts: Sequence[str], tokens: TokenTable) -> list[list[int]]:
        """Return what is missing of each batch of the strings that the old cache does not have: all
        of it, unless an interrupted build was of other strings.
        """
        fresh = torch.tensor(
            [s for s, text in enumerate(texts) if text not in self.cached], dtype=torch.int64
        )
        planned = length_batches(tokens.lengths[fresh], MAX_BATCH_TOKENS) if len(fresh) else []
        parts = [fresh[part].tolist() for batch in planned for part in batch.split(PIECE)]
        missing = ([s for s in part if texts[s] not in self._saved] for part in parts)
        return [part for part in missing if part]


def dealt_batches(
    batches: Sequence[Int[Tensor, " _"]], lengths: Int[Tensor, " S"], size: int
) -> tuple[tuple[Int[Tensor, " _"], ...], ...]:
    """Return the batches of each of `size` ranks, of costs as equal as dealing the dearest first
    makes them, each rank's shortest strings first.
    """
    costs = [len(batch) * int(lengths[batch].max()) + BATCH_OVERHEAD_TOKENS for batch in batches]
    load, mine = [0] * size, [[] for _ in range(size)]
    for number in sorted(range(len(batches)), key=lambda number: -costs[number]):
        rank = load.index(min(load))
        load[rank] += costs[number]
        mine[rank].append(number)
    return tuple(tuple(batches[number] for number in sorted(numbers)) for numbers in mine)


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
        ranks.gather(failure or _encode_share(work, encoder, ranks))
    return work.exit_code


def _encode_share(work: Work, encoder: StringEncoder, ranks: Ranks) -> Exception | None:
    """Encode this rank's batches and save them piece by piece; return what went wrong, for all
    ranks to know.
    """
    share = work.shares[ranks.rank]
    total = sum(len(batch) for batch in share)
    name = (
        "encoding strings"
        if ranks.size == 1
        else f"encoding strings (rank {ranks.rank} of {ranks.size})"
    )
    bar = tqdm(
        total=total, desc=name, unit="string", disable=None if total and ranks.rank == 0 else True
    )
    piece: list[int] = []
    vectors: list[np.ndarray] = []
    try:
        with bar:
            for number, batch in enumerate(share):
                found = encode_all(encoder, work.tokens.take(batch), progress=False)
                _refuse_non_finite(found, [work.texts[s] for s in batch.tolist()])
                piece += batch.tolist()
                vectors.append(found)
                if len(piece) >= PIECE or number + 1 == len(share):
                    _save_piece(
                        _free_name(work.folder, ranks.rank),
                        [work.texts[s] for s in piece],
                        np.concatenate(vectors),
                    )
                    piece, vectors = [], []
                bar.update(len(batch))
    except (UserError, OSError) as error:
        return error
    return None


def _raise_first(failures: list[Exception | None]) -> None:
    """Raise the failure of the lowest rank that has one; a system error keeps its number, which
    says whether the disk is full.
    """
    for rank, failure in enumerate(failures):
        if failure is not None and rank == 0:
            raise failure
        if isinstance(failure, OSError):
            raise OSError(failure.errno, f"rank {rank}: {failure.strerror}")
        if failure is not None:
            raise type(failure)(f"rank {rank}: {failure}")


def _free_name(folder: Path, rank: int) -> Path:
    """Return the name of a piece that no other process writes."""
    number = len(list(folder.glob("*.npz")))
    while (file := folder / f"{number:06d}-{rank}-{os.getpid()}.npz").exists():
        number += 1
    return file


def _save_piece(file: Path, texts: list[str], vectors: np.ndarray) -> None:
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
