"""Every kernel of the encoder compiles for an H100: with tensor cores, and without atomics."""

import pytest
import torch
from h100 import compile_for_h100

from embedcache.kernels import attention

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
HEADS = {"NUM_HEADS": 12, "HEAD_WIDTH": 50, "BLOCK_L": 32, "BLOCK_D": 64}
KERNELS = {
    "attention": (attention._forward_kernel, HEADS),
    "attention backward": (attention._backward_kernel, HEADS),
    "one query": (attention._forward_one_kernel, HEADS),
    "one query backward": (attention._backward_one_kernel, HEADS),
}
INTEGERS = ("start_ptr", "length_ptr")
NUMBERS = ("root",)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_an_h100(name: str, dtype: str) -> None:
    kernel, constants = KERNELS[name]

    def type_of(argument: str) -> str:
        if argument.endswith("_ptr"):
            return "*i64" if argument in INTEGERS else f"*{dtype}"
        return "fp32" if argument in NUMBERS else "i32"

    ptx = compile_for_h100(kernel, type_of, constants)
    if not name.startswith("one query"):
        assert "mma" in ptx
