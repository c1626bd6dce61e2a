"""Run by test_throughput.py, in a process of its own: whatever joins a process group, at tiny size.

Gradients, one turn per mode, a profile, two loops of training, a fit of the quality study and steps
of resident rows, printed as JSON. All in one process, since to start one costs more than all steps.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.setting import make_setting
from benchmarks.peer_loops import make
from benchmarks.quality_fit import cached, fit
from benchmarks.studies import loading, loading_table, profile
from benchmarks.throughput import TINY, Turn

TABLE_ROWS = 5_000


class LocalWorker:
    """A worker in this process."""

    def __init__(self, factory: str, spec: dict[str, Any]) -> None:
        module, name = factory.split(":")
        self.ask = getattr(import_module(module), name)(spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def main() -> None:
    folder = Path(sys.argv[1])
    make_setting(folder, TINY.encoder, TINY.rows_per_patient, overrides=TINY.overrides)
    profile.Worker = LocalWorker
    epochs = ["encoder.mode=frozen", "train.epochs=2", "train.batch_rows=64"]
    found = {
        "gradient_error": gradient_errors(folder, overrides=TINY.overrides),
        "losses": losses(folder),
        "turns": turns(folder),
        "profile": profile.run(profile.TINY, "fp32"),
        "quality": fit(cached(folder, [*TINY.overrides, *epochs])),
        "loading": loaded(folder / "table"),
    }
    print(json.dumps(found), flush=True)


def losses(folder: Path) -> dict[str, list[float]]:
    spec = {
        "folder": str(folder),
        "precision": "fp32",
        "rows": 24,
        "micro_rows": 8,
        "overrides": TINY.overrides,
        "mode": "per_step",
    }
    workers = {
        loop: make({**spec, "loop": loop}) for loop in ("Hugging Face Trainer", "ours, per_step")
    }
    return {loop: [worker(None)["loss"] for _ in range(4)] for loop, worker in workers.items()}


def turns(folder: Path) -> dict[str, dict[str, Any]]:
    spec = {
        "folder": str(folder),
        "precision": "fp32",
        "batch_rows": TINY.batch_rows,
        "naive_rows": TINY.naive_rows,
        "micro_rows": 16,
        "overrides": TINY.overrides,
    }
    modes = ("naive_128", "per_microbatch", "per_step", "prefix", "frozen")
    return {mode: Turn({**spec, "mode": mode})(None) for mode in modes}


def loaded(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    loading_table.write_table(folder / "cache.zarr", TABLE_ROWS, memory_mib=1)
    chosen = argparse.Namespace(memory_mib=1, network="small", steps=2, batch_rows=256)
    return loading.measure("resident", folder, chosen)


if __name__ == "__main__":
    main()
