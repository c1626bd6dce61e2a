"""Residual, dropout and LayerNorm of a post-norm block: by a kernel where there is one.

The kernel gives the result twice: the state, which goes around the next block, and the operand,
which the next product takes, in the dtype of products. Plainly both are the one tensor that
LayerNorm returns, in fp32 under autocast.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.encoder.dropout import dropout
from embedcache.kernels import HAS_TRITON, has_kernels
from embedcache.kernels.seeds import draw_seed

if HAS_TRITON:
    from embedcache.kernels import add_norm as _kernels


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`; by a kernel it returns the dtype of x, where autocast would return fp32."""

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Return x normalised over its last axis."""
        if not _takes_kernel(x):
            return super().forward(x)
        return _kernels.add_norm(x, None, self.weight, self.bias, self.eps, 0.0, None, x.dtype)[0]


def add_norm(
    norm: nn.LayerNorm,
    x: Float[Tensor, "*tokens D"],
    residual: Float[Tensor, "*tokens D"],
    p: float = 0.0,
    state_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*tokens D"], Float[Tensor, "*tokens D"]]:
    """Return norm(residual + dropout of x), as state and as operand.

    By the kernel the operand has the dtype of x, and so has the state where `state_dtype` names no
    other; its mask is seeded from torch's generator of the device. Elements are dropped with
    probability p, which is 0 in evaluation.
    """
    if not _takes_kernel(x):
        y = norm(residual + dropout(x, p, training=True))
        return y, y
    seed = draw_seed(x.device) if p > 0 else None
    return _kernels.add_norm(
        x, residual, norm.weight, norm.bias, norm.eps, p, seed, state_dtype or x.dtype
    )


def _takes_kernel(x: Tensor) -> bool:
    """Return whether the kernel is for x; torch.compile fuses the plain operations itself."""
    return has_kernels(x) and x.dtype != torch.float64 and not torch.compiler.is_compiling()
