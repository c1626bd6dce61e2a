"""Triton kernels of the encoder and what the network's kernels share with them, and who takes them.

Tensors on a CUDA device take kernels where Triton is installed. Under TRITON_INTERPRET=1, which the
tests set, the kernels run on the CPU too, by Triton's interpreter.
"""

import os
from importlib.util import find_spec

from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
_KERNEL_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def has_kernels(tensor: Tensor) -> bool:
    """Return whether operations on this tensor take kernels."""
    return HAS_TRITON and tensor.device.type in _KERNEL_DEVICES
