"""The compiled network is the plain one: same outputs and gradients, and one graph for all sizes of
a micro-batch.
"""

import json
from pathlib import Path

import pytest
from forks import Forks


@pytest.mark.slow
def test_the_compiled_network_is_the_plain_one(forks: Forks) -> None:
    done = forks.run(Path(__file__).with_name("compile_worker.py"))
    found = json.loads(done.out.splitlines()[-1])
    assert found["error"] < 1e-4
    assert found["graphs"] == 1
