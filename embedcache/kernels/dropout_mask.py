"""Dropout's mask as a function of (seed, row, column), by Philox: backward draws it again."""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from embedcache.kernels.reference import KEEP_BITS

# the interpreter's bf16 is cut, not rounded, and its tl.dot multiplies bit patterns (triton issue
# 11584): fp32
INTERPRETED = triton.knobs.runtime.interpret


def readable(x: Tensor) -> Tensor:
    """Return x contiguous, and in fp32 where the interpreter reads it."""
    return x.float().contiguous() if INTERPRETED else x.contiguous()


def drop_threshold(p: float) -> int:
    """Return the random number below which an element is dropped, with probability p."""
    return round(p * (1 << KEEP_BITS))


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def keep(seed_ptr, rows, first_column, threshold, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the mask [BLOCK_B, BLOCK_D] of `reference.keep_mask`, four elements a Philox call."""
    quads = first_column // 4 + tl.arange(0, BLOCK_D // 4)
    zero = tl.zeros([BLOCK_B, BLOCK_D // 4], tl.int32)
    w0, w1, w2, w3 = tl.philox(
        tl.load(seed_ptr), quads[None, :] + zero, rows[:, None] + zero, zero, zero
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK_B, BLOCK_D])
    return (words >> 8).to(tl.int32) >= threshold
