"""Products with matrices that do not change, in the layout that the CPU's library multiplies by.

oneDNN multiplies by blocks of a matrix, and copies a plain matrix into blocks in every call; MKL,
which torch asks for fp32 products of plain matrices, is slower on some CPUs. A `ConstantLinear` is
copied once. Measured on 2 cores of AMD EPYC for 1024 rows and 1024 x 2048 weights, in turns: fp32
24.5 ms plain, 19.6 ms laid out; bf16 10.6 and 9.9 ms. Elsewhere, and in dtypes that oneDNN does not
know, the matrix is plain.

oneDNN generates code for every number of rows that it meets and keeps it, about 0.8 MiB each for up
to a thousand products: round the number of rows, as `RowEvaluator` does, before the products of
batches of ever new sizes.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class ConstantLinear:
    """`x W^T + b` by constant W [O, I] and b [O]; no gradient passes."""

    @torch.no_grad()
    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None) -> None:
        """The weight is copied where it can be laid out, and held where not."""
        self.dtype = weight.dtype
        self._is_laid_out = can_lay_out(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, None) if self._is_laid_out else weight
        )
        self._bias = bias

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """Return x W^T + b in W's dtype; x is cast to it."""
        x = x.to(self.dtype)
        if self._is_laid_out:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)


def can_lay_out(weight: Tensor) -> bool:
    """Return whether oneDNN is there and multiplies in the weight's dtype on this CPU."""
    ops = torch.ops.mkldnn
    if (
        weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or not hasattr(ops, "_linear_pointwise")
    ):
        return False  # the operator is what torch.compile calls on CPUs, not a public function
    known = {
        torch.float32: True,
        torch.bfloat16: ops._is_mkldnn_bf16_supported(),
        torch.float16: ops._is_mkldnn_fp16_supported(),
    }
    return known.get(weight.dtype, False)
