"""Commands say how OpenMP's threads wait before torch loads OpenMP, leave what the user said, and
answer --help without torch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusionnet.commands import SPINS

pytestmark = pytest.mark.slow
WATCH = """
import os, runpy, sys
kind, name = sys.argv[1:]
sys.argv = [name, "--help"]
try:
    if kind == "module":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
finally:
    spins, heavy = os.environ.get("GOMP_SPINCOUNT"), {"torch", "transformers"} & set(sys.modules)
    print("torch will find", spins if not heavy else f"nothing: {heavy} came first", flush=True)
"""


def found_by_torch(kind: str, name: str, repository: Path, **variables: str) -> str:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, kind, name],
        cwd=repository,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1].removeprefix("torch will find ")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("script", "jobs/train.py"),
        ("module", "jobs.train"),
        ("module", "jobs.build_cache"),
        ("module", "benchmarks"),
    ],
)
def test_threads_spin_briefly(kind: str, name: str, repository: Path) -> None:
    assert found_by_torch(kind, name, repository) == SPINS


@pytest.mark.parametrize(
    ("variables", "spins"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_what_the_user_has_set_stays(
    variables: dict[str, str], spins: str, repository: Path
) -> None:
    assert found_by_torch("script", "jobs/train.py", repository, **variables) == spins
