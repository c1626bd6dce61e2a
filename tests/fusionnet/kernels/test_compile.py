"""Every kernel compiles for an H100: with tensor cores where the type has them, and without
atomics; on a GPU torch.compile sees no graph break (elsewhere test_interpreted.py asks).
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from h100 import compile_for_h100

from fusionnet.kernels import _loss, gather, segment_sum

ON_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if ON_GPU else []
KERNELS = {
    "gather_add": (
        gather._gather_add_kernel,
        {"NUM_COLUMNS": 2, "HAS_DENSE": True, "BLOCK_B": 32, "BLOCK_D": 128},
    ),
    "gather_dropout": (gather._gather_dropout_kernel, {"BLOCK_B": 32, "BLOCK_D": 128}),
    "onehot": (
        segment_sum._onehot_kernel,
        {
            "NUM_COLUMNS": 2,
            "MASKED": False,
            "WIDE": False,
            "BLOCK_B": 64,
            "BLOCK_D": 64,
            "BLOCK_U": 32,
        },
    ),
    "onehot masked": (
        segment_sum._onehot_kernel,
        {
            "NUM_COLUMNS": 1,
            "MASKED": True,
            "WIDE": False,
            "BLOCK_B": 64,
            "BLOCK_D": 64,
            "BLOCK_U": 16,
        },
    ),
    "sorted masked": (
        segment_sum._sorted_kernel,
        {"NUM_COLUMNS": 1, "MASKED": True, "BLOCK_B": 16, "BLOCK_D": 128},
    ),
    "sum of slices": (segment_sum._sum_slices_kernel, {"BLOCK": 256}),
    "row losses": (_loss._rows_kernel, {"LIMIT": 10.0, "BLOCK_B": 64, "BLOCK_T": 8}),
    "finish": (_loss._finish_kernel, {"LIMIT": 10.0, "BLOCK_B": 64, "BLOCK_T": 8}),
}
INTEGERS = ("index_ptr", "order_ptr", "bound_ptr", "seed_ptr")
GIVEN = ("table_ptr", "hidden_ptr", "gradient_ptr", "dense_ptr", "out_ptr", "outputs_ptr")


@pytest.mark.slow
@pytest.mark.skipif(not ON_GPU, reason="test_interpreted.py runs it")
def test_one_graph() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    checked = Path(__file__).with_name("one_graph.py")
    done = subprocess.run(
        [*command, "--jaxtyping-packages=", str(checked)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_an_h100(name: str, dtype: str) -> None:
    kernel, constants = KERNELS[name]

    def type_of(argument: str) -> str:
        if argument.endswith("_ptr"):
            return "*i64" if argument in INTEGERS else f"*{dtype if argument in GIVEN else 'fp32'}"
        return "fp32" if argument in ("scale", "share") else "i32"

    ptx = compile_for_h100(kernel, type_of, constants)
    if name.startswith("onehot"):
        assert ("mma" in ptx) == (dtype == "bf16"), "fp32 must not be rounded to tf32"
