"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is
imported: in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILES = (
    "embedcache/kernels/test_add_norm.py",
    "embedcache/kernels/test_attention.py",
    "embedcache/kernels/test_encoder.py",
    "embedcache/kernels/test_lora.py",
    "fusionnet/kernels/test_drop_heads.py",
    "fusionnet/kernels/test_fusion.py",
    "fusionnet/kernels/test_gather.py",
    "fusionnet/kernels/test_gelu_dropout.py",
    "fusionnet/kernels/test_head_ends.py",
    "fusionnet/kernels/test_multitask_loss.py",
    "fusionnet/kernels/one_graph.py",
    "fusionnet/model/test_linear.py",
)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels' tests run on this machine's GPU"
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="already interpreted")
def test_the_kernels_interpreted(repository: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    # no shape checks, which the same modules have elsewhere: 10 s less, and a compiler may look in
    command.append("--jaxtyping-packages=")
    done = subprocess.run(
        [*command, *(str(Path(__file__).parent / name) for name in FILES)],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
