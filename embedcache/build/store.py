"""What an encoder has made of strings, kept for all builds: a folder that outlives every cache.

    <cache.vectors>/<encoding key>/<sha256>.safetensors    texts and vectors of some strings

Another split, target or table of the same strings then encodes nothing, nor are RDKit's descriptors
computed again, which lie here too, as if by an encoder of their own. A piece is written once,
whole, under the digest of its content, and never changed: so builds read and write at once without
a lock, and a piece whose bytes are no longer those of its name is dropped and its strings are
encoded again. A build reads what it needs into memory when it begins, so nobody can take it away.
What goes beyond the folder's size is removed, the pieces that were used longest ago first. Whatever
is wrong with the folder is a remark of the build and never its end. A build adds what it encoded
when it has all of it: were pieces added meanwhile, one that is killed and goes on would find
another rest to encode, in other batches.

Within a store a string has one vector by one encoder, whatever table it comes from: the first that
was kept, to its last bits, which depend on the strings that shared its batch. A build without the
store, or after its string was removed, may differ in these bits alone. Of two builds that encode
one string at once each has its own, and later ones take one of the two.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from embedcache.config.cache import CacheConfig
from embedcache.files import clean_up_after_killed, write_atomically
from embedcache.system import explained
from embedcache.text import count_of, visible

SUFFIX = ".safetensors"
# what is ours in a folder that may hold models too
_FOLDER, _PIECE = re.compile("[0-9a-f]{16}"), re.compile("[0-9a-f]{64}" + re.escape(SUFFIX))
# of a piece: what one damaged byte costs
PIECE_BYTES, PIECE_STRINGS = 4 << 20, 4096
LEFT_S = 3600.0  # after which what is half written is nobody's; writing takes less than a second
VectorsByText = dict[str, np.ndarray]  # each vector is [E]


class DamagedPieceError(Exception):
    """A piece is not what was written; it never leaves this module."""


@dataclass(frozen=True)
class Piece:
    """A file of the store: its strings, how large it is, and when it was used last."""

    path: Path
    encoder: str  # where it lay when it encoded them
    texts: tuple[str, ...]
    num_bytes: int
    used_s: float  # since the epoch


class NoStore:
    """What a build has that is to do without: it knows nothing, and keeps nothing."""

    remarks: Sequence[str] = ()

    def find(self, texts: Iterable[str], width: int) -> VectorsByText:
        """Return nothing."""
        return {}

    def add(self, vectors: Mapping[str, np.ndarray], encoder: str) -> None:
        """Keep nothing."""


class VectorStore:
    """The store as one build sees it, of one encoder; `remarks` are what went wrong with it."""

    def __init__(self, root: Path, encoding: str, most_bytes: int, finite: bool = True) -> None:
        """`root` is the store's folder, of at most so many bytes; `encoding` the encoder's key.

        `finite`: vectors with NaN or infinity are damaged.
        """
        self._root, self._folder, self._most_bytes = root, root / encoding, most_bytes
        self._finite = finite
        self._own: set[Path] = set()  # pieces that this build has read or written
        self._found: set[str] = set()
        self.remarks: list[str] = []

    def find(self, texts: Iterable[str], width: int) -> VectorsByText:
        """Return the vectors [E] of those texts that the store has; `width` is E."""
        wanted, found, num_damaged = set(texts), VectorsByText(), 0
        with self._told("read"):
            for file in pieces_in(self._folder) if wanted else ():
                try:
                    fresh = _vectors_of(file, wanted - found.keys(), width, self._finite)
                except FileNotFoundError:
                    continue  # another build made room
                except DamagedPieceError:
                    num_damaged += 1
                    with suppress(OSError):
                        file.unlink()
                    continue
                if fresh:
                    found |= fresh
                    self._own.add(file)
                    with suppress(OSError):  # somebody else's
                        os.utime(file)
        self._found |= found.keys()
        if num_damaged:
            self.remarks.append(
                f"{count_of(num_damaged, 'damaged piece')} of the vector store {self._folder}:"
                " dropped, and its strings encoded again"
            )
        return found

    def add(self, vectors: Mapping[str, np.ndarray], encoder: str) -> None:
        """Keep the vectors of strings that the store lacks, and take away what is too much."""
        if vectors.keys() <= self._found:
            return
        with self._told("written"):
            self._folder.mkdir(parents=True, exist_ok=True)
            known = {text for piece in listed(self._folder) for text in piece.texts}
            texts = [text for text in vectors if text not in known]
            if not texts:
                return
            bytes_each = vectors[texts[0]].nbytes
            most = self._most_bytes // bytes_each
            if len(texts) > most:
                self.remarks.append(
                    f"the vector store {self._root} keeps {most:,} of these {len(texts):,} strings,"
                    " as many as cache.vectors_gib allows"
                )
            step = max(1, min(PIECE_BYTES // bytes_each, PIECE_STRINGS))
            for start in range(0, min(len(texts), most), step):
                some = texts[start : min(start + step, most)]
                self._own.add(_write(self._folder, some, [vectors[text] for text in some], encoder))
            self._make_room()

    def _make_room(self) -> None:
        """Remove what killed writers left, and the pieces used longest ago, down to the size."""
        sizes = []
        for folder in _folders_in(self._root):
            _clear(folder)
            for file in pieces_in(folder):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    sizes.append((file in self._own, status.st_mtime, status.st_size, file))
        too_much = sum(size for _, _, size, _ in sizes) - self._most_bytes
        for is_own, _, size, file in sorted(sizes):
            if too_much <= 0 or is_own:
                break
            file.unlink(missing_ok=True)
            too_much -= size

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """Make a remark of the system's errors and go on."""
        try:
            yield
        except OSError as error:
            self.remarks.append(
                f"the vector store {self._root} cannot be {done} ({explained(error)}), so this"
                " build does without it; set cache.vectors to another folder, or to off"
            )


def vector_store(cache: CacheConfig, encoding: str, finite: bool = True) -> VectorStore | NoStore:
    """Return the store that a build of this config shares with all others, of one encoder, or of
    one kind of features, which may be missing (`finite` false).
    """
    root = cache.vectors_folder
    if root is None:
        return NoStore()
    return VectorStore(root, encoding, cache.vectors_bytes, finite)


def summary_of(root: Path) -> str:
    """Return what a store holds, by encoder, in words."""
    lines, total = [], 0
    for folder in _folders_in(root):
        pieces = list(listed(folder))
        if not pieces:
            continue
        last = max(pieces, key=lambda piece: piece.used_s)
        num_bytes = sum(piece.num_bytes for piece in pieces)
        total += num_bytes
        used = datetime.fromtimestamp(last.used_s, UTC).date().isoformat()
        lines.append(
            f"  {folder.name}: {len({text for piece in pieces for text in piece.texts}):,} strings,"
            f" {num_bytes / 1e6:,.1f} MB, used on {used}, encoder {visible(last.encoder)}"
        )
    if not lines:
        return f"{root}: no vectors are kept here"
    encoders = count_of(len(lines), "encoder")
    return "\n".join([f"{root}: vectors by {encoders}, {total / 1e6:,.1f} MB", *lines])


def emptied(root: Path) -> int:
    """Delete all pieces of a store, and nothing else; return the bytes that they had."""
    num_bytes = 0
    for folder in _folders_in(root):
        for file in pieces_in(folder):
            num_bytes += file.stat().st_size
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            folder.rmdir()
    return num_bytes


def listed(folder: Path) -> Iterator[Piece]:
    """Yield what the pieces of one encoder say that they hold, but for those that say nothing."""
    for file in pieces_in(folder):
        with suppress(DamagedPieceError, FileNotFoundError):
            texts, encoder = _header_of(file)
            status = file.stat()
            yield Piece(file, encoder, texts, status.st_size, status.st_mtime)


def pieces_in(folder: Path) -> list[Path]:
    """Return the pieces of one encoder, always in one order."""
    return sorted(file for file in folder.glob(f"*{SUFFIX}") if _PIECE.fullmatch(file.name))


def _folders_in(root: Path) -> list[Path]:
    """Return the folders of a store, one for each encoder."""
    return sorted(path for path in root.glob("*") if _FOLDER.fullmatch(path.name))


def _clear(folder: Path) -> None:
    """Delete what killed writers left in an encoder's folder a while ago."""
    for left in folder.glob(f".*{SUFFIX}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > LEFT_S:
                clean_up_after_killed(folder / f"{left.name[1:].partition(SUFFIX)[0]}{SUFFIX}")


def _vectors_of(file: Path, wanted: set[str], width: int, finite: bool) -> VectorsByText:
    """Return the wanted vectors of a piece; raises DamagedPieceError unless all of it is whole."""
    texts, _ = _header_of(file)
    rows = [row for row, text in enumerate(texts) if text in wanted]
    if not rows:
        return {}
    try:
        with safe_open(file, framework="numpy") as piece:
            vectors = piece.get_tensor("vectors")
    except SafetensorError as error:
        raise DamagedPieceError(str(error)) from None
    if vectors.dtype != np.float32 or vectors.shape != (len(texts), width):
        raise DamagedPieceError(f"it holds {vectors.dtype} {vectors.shape}")
    if _digest(texts, vectors) != file.stem or (finite and not np.isfinite(vectors).all()):
        raise DamagedPieceError("its bytes changed")
    return dict(zip((texts[row] for row in rows), vectors[rows], strict=True))


def _header_of(file: Path) -> tuple[tuple[str, ...], str]:
    """Return a piece's texts and where its encoder lay, of which only the form is checked."""
    try:
        with safe_open(file, framework="numpy") as piece:
            metadata = piece.metadata() or {}
        texts = json.loads(metadata["texts"])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise DamagedPieceError(str(error)) from None
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise DamagedPieceError("its texts are none")
    return tuple(texts), str(metadata.get("encoder", ""))


def _write(folder: Path, texts: Sequence[str], vectors: Sequence[np.ndarray], encoder: str) -> Path:
    """Write one piece and return its path."""
    stacked = np.stack(vectors).astype(np.float32)
    metadata = {"texts": json.dumps(list(texts)), "encoder": encoder}
    file = folder / f"{_digest(texts, stacked)}{SUFFIX}"
    write_atomically(file, save({"vectors": stacked}, metadata))
    return file


def _digest(texts: Sequence[str], vectors: Float32[np.ndarray, "S E"]) -> str:
    """Return the sha256 over texts and vectors."""
    digest = hashlib.sha256(json.dumps(list(texts)).encode())
    digest.update(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
    return digest.hexdigest()
