"""Arrays as one run of bytes, and where each lies in it.

Weights are fp32, or whole numbers of few bits with one fp32 scale for each row of a matrix. Half
precision would lose more than 16 bits so: its steps are fitted to powers of two, those of a row to
its largest weight. Bits beyond 16 lie behind, several numbers' in a byte.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Bits = Literal[16, 18, 20, 32]  # of a weight; 32: fp32
Place = dict[str, Any]  # where an array lies: first byte, shape, and how its numbers are written
_KINDS = {"f32": np.float32, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32}


class ArrayWriter:
    """Appends arrays to a blob of little-endian bytes."""

    def __init__(self, bits: Bits) -> None:
        """`bits` are those of a weight."""
        self._bits = bits
        self._parts: list[bytes] = []
        self._end = 0

    def weights(self, matrix: Float[Tensor, "*rows width"]) -> Place:
        """Append a matrix whose numbers may be rounded."""
        values = matrix.detach().cpu().float().numpy()
        if self._bits == 32:
            return self.exact(values, "f32")
        most = 2 ** (self._bits - 1) - 1
        largest = np.abs(values).max(-1, initial=0.0, keepdims=True)
        scale = np.maximum(largest / most, np.finfo(np.float32).tiny).astype(np.float32)
        whole = np.rint(values / scale.astype(np.float64)).clip(-most, most).astype(np.int64)
        extra = self._bits - 16
        place = self.exact(scale, "f32")
        self.exact(whole >> extra, "i16")
        if extra:
            self.exact(_packed(whole.ravel() & (2**extra - 1), extra), "u8")
        return place | {"shape": list(values.shape), "as": "scaled", "extra": extra}

    def numbers(self, values: Float[Tensor, "*shape"]) -> Place:
        """Append fp32 numbers as they are."""
        return self.exact(values.detach().cpu().float().numpy(), "f32")

    def exact(self, values: np.ndarray, kind: str) -> Place:
        """Append an array of a kind that holds all of its numbers."""
        content = values.astype(np.dtype(_KINDS[kind]).newbyteorder("<")).tobytes()
        place = {"at": self._end, "shape": list(values.shape), "as": kind}
        # typed arrays begin at multiples of their numbers' bytes
        self._parts.append(content.ljust(_padded(len(content)), b"\0"))
        self._end += len(self._parts[-1])
        return place

    def blob(self) -> bytes:
        """Return everything that was appended."""
        return b"".join(self._parts)


class ArrayReader:
    """Reads arrays where an `ArrayWriter` has put them."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob

    def __call__(self, place: Place) -> Float[Tensor, "*shape"]:
        """Return an array in float64."""
        at, shape = place["at"], place["shape"]
        if place["as"] != "scaled":
            return torch.from_numpy(self._read(at, shape, place["as"]).astype(np.float64))
        scale = self._read(at, [*shape[:-1], 1], "f32").astype(np.float64)
        at, count, extra = at + 4 * scale.size, math.prod(shape), place["extra"]
        whole = self._read(at, shape, "i16").astype(np.float64)
        if extra:
            low = self._read(at + _padded(2 * count), [-(-count * extra // 8)], "u8")
            parts = [low >> shift & (2**extra - 1) for shift in range(0, 8, extra)]
            whole = whole * 2**extra + np.stack(parts, 1).ravel()[:count].reshape(shape)
        return torch.from_numpy(whole * scale)

    def _read(self, start: int, shape: list[int], kind: str) -> np.ndarray:
        dtype = np.dtype(_KINDS[kind]).newbyteorder("<")
        return np.frombuffer(self._blob, dtype, math.prod(shape), start).reshape(shape)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 4) * 4


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers of 2 or 4 bits several to a byte, the first one lowest."""
    per_byte = 8 // bits
    rows = np.pad(values, (0, -len(values) % per_byte)).reshape(-1, per_byte)
    return (rows << np.arange(0, 8, bits)).sum(1).astype(np.uint8)
