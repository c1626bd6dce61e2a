"""What a result must say of itself: hardware, versions, commit, command, date."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fusionnet.train.precision import multiplies_bf16

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "zarr",
    "polars",
    "numpy",
    "scikit-learn",
    "rdkit",
)
REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"


def stamp() -> dict[str, Any]:
    """Return the circumstances of this process."""
    return {
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "emulates_bf16": not multiplies_bf16(torch.device("cpu")),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        # no folders of this machine
        "command": "python -m benchmarks "
        + shlex.join(Path(word).name if "/" in word else word for word in sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _commit() -> str:
    """Return the checkout's commit, marked where files other than results differ from it."""
    commit = _git("describe", "--always")
    return (
        f"{commit}-dirty"
        if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        else commit or "unknown"
    )


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
