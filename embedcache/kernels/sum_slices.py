"""The sum over slices of partial sums, in order: bitwise repeatable."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from embedcache.kernels.dropout_mask import INTERPRETED


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _sum_slices_kernel(
    partial_ptr,  # [slices, elements]
    out_ptr,  # [elements]
    num_slices,
    num_elements,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    elements = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_S, BLOCK_E], tl.float32)
    for start in range(0, num_slices, BLOCK_S):
        slices = start + tl.arange(0, BLOCK_S)
        inside = (slices < num_slices)[:, None] & (elements < num_elements)[None, :]
        offset = slices[:, None] * num_elements + elements[None, :]
        total += tl.load(partial_ptr + offset, mask=inside, other=0.0)
    out = tl.sum(total, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + elements, out, mask=elements < num_elements)


def sum_slices(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of partial [slices, ...] in fp32, as `dtype`."""
    shape = partial.shape[1:]
    out = partial.new_empty(shape, dtype=torch.float32 if INTERPRETED else dtype)
    num_elements = shape.numel()
    grid = (triton.cdiv(num_elements, 16),)
    _sum_slices_kernel[grid](partial, out, len(partial), num_elements, 128, 16, num_warps=4)
    return out.to(dtype)
