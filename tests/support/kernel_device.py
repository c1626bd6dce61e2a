"""Where the kernels' tests run: on a GPU where there is one, else in Triton's interpreter, in the
process that test_interpreted.py starts. Anywhere else, whoever imports this is skipped.
"""

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MARKS = [pytest.mark.gpu] if ON_GPU else []

if not ON_GPU:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "test_interpreted.py runs this file in a process of its own", allow_module_level=True
        )
    import interpreter  # noqa: F401
