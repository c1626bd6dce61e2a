"""The compiled network is the plain one: same outputs and gradients, and one graph for all sizes of
a micro-batch.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_compiled_network_is_the_plain_one() -> None:
    worker = Path(__file__).with_name("compile_worker.py")
    command = [sys.executable, str(worker)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] < 1e-4
    assert found["graphs"] == 1
