"""Every kernel of the encoder compiles for an H100: with tensor cores, and without atomics."""

import pytest
import torch
from h100 import compile_for_h100

from embedcache.kernels import attention_kernels, lora_kernels

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
HEADS = {"NUM_HEADS": 12, "HEAD_WIDTH": 50, "BLOCK_L": 32, "BLOCK_D": 64}
LORA = {"NUM": 3, "RANK": 16, "BLOCK_K": 16, "BLOCK_C": 128, "BLOCK_R": 16}
TOKENS = {"BLOCK_T": 128, "BLOCK_W": 32}
TILES = {**HEADS, "HALF": 16, "QUARTER": 16}
KERNELS = {
    "attention": (attention_kernels.forward_kernel, TILES),
    "attention backward": (attention_kernels.backward_kernel, TILES),
    "one query": (attention_kernels.forward_one_kernel, HEADS),
    "one query backward": (attention_kernels.backward_one_kernel, HEADS),
    "lora": (
        lora_kernels.forward_kernel,
        {**LORA, "WIDTH_IN": 600, "WIDTH_OUT": 600, "DROPS": True},
    ),
    "lora backward to low": (
        lora_kernels.backward_low_kernel,
        {**LORA, **TOKENS, "WIDTH_OUT": 600},
    ),
    "lora backward to input": (
        lora_kernels.backward_input_kernel,
        {**LORA, **TOKENS, "WIDTH_IN": 600, "DROPS": True},
    ),
}
TYPES = {
    **dict.fromkeys(("start_ptr", "length_ptr", "seed_ptr"), "*i64"),
    "keep_ptr": "*i8",
    # parameters and what becomes a gradient of theirs are wide beside narrow products
    **{f"{place}_{of}_ptr": "*fp32" for place in ("first", "second", "third") for of in "ab"},
    **dict.fromkeys(("of_a_ptr", "of_b_ptr", "of_input_ptr"), "*fp32"),
    **dict.fromkeys(("root", "factor"), "fp32"),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_an_h100(name: str, dtype: str) -> None:
    kernel, constants = KERNELS[name]

    def type_of(argument: str) -> str:
        return TYPES.get(argument, f"*{dtype}" if argument.endswith("_ptr") else "i32")

    ptx = compile_for_h100(kernel, type_of, constants)
    if name.startswith("attention"):
        assert "mma" in ptx
    if name.startswith("lora"):
        assert ("mma" in ptx) == (dtype == "bf16"), "fp32 must not be rounded to tf32"
