"""What the kernels compute, in plain PyTorch, where no other module has it.

The kernels are held to these functions (tests/embedcache/kernels, tests/fusionnet/kernels).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

KEEP_BITS = 24  # dropout compares this many random bits with p
_WORD = 0xFFFFFFFF


def add_norm(
    x: Float[Tensor, "K D"],
    residual: Float[Tensor, "K D"] | None,
    weight: Float[Tensor, " D"],
    bias: Float[Tensor, " D"],
    eps: float,
    p: float,
    seed: Int[Tensor, " 1"] | None,
) -> Float[Tensor, "K D"]:
    """Return LayerNorm(residual + dropout of x), the mask by `keep_mask`, statistics in fp32."""
    if seed is not None:
        x = torch.where(keep_mask(seed, x.shape[0], x.shape[1], p), x / (1 - p), 0.0)
    total = x if residual is None else residual + x
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    return F.layer_norm(wide, weight.shape, weight.to(wide.dtype), bias.to(wide.dtype), eps)


def keep_mask(
    seed: Int[Tensor, " 1"], num_rows: int, width: int, p: float
) -> Bool[Tensor, "{num_rows} {width}"]:
    """Return False with probability p.

    Element (b, 4 q + j) is word j of Philox 4x32-10 (Salmon et al. 2011) with key `seed` at the
    counter (q, b, 0, 0).
    """
    quads = torch.arange(-(-width // 4), device=seed.device)
    b = torch.arange(num_rows, device=seed.device).unsqueeze(1).expand(-1, len(quads))
    zero = torch.zeros_like(b)
    words = _philox((quads.expand_as(b), b, zero, zero), seed & _WORD, (seed >> 32) & _WORD)
    bits = torch.stack(words, dim=2).flatten(1)[:, :width] >> (32 - KEEP_BITS)
    return bits >= round(p * (1 << KEEP_BITS))


def _philox(counter: tuple[Tensor, ...], low_key: Tensor, high_key: Tensor) -> tuple[Tensor, ...]:
    """Return four random 32-bit words (held in int64) per counter.

    int64 products wrap, which leaves both halves of the 64 bits right.
    """
    c0, c1, c2, c3 = counter
    for _ in range(10):
        left, right = 0xCD9E8D57 * c2, 0xD2511F53 * c0
        c0, c1 = (left >> 32 & _WORD) ^ c1 ^ low_key, left & _WORD
        c2, c3 = (right >> 32 & _WORD) ^ c3 ^ high_key, right & _WORD
        low_key, high_key = (low_key + 0x9E3779B9) & _WORD, (high_key + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3
