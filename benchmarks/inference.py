"""Evaluation and reward at full size: rows per second beside what this machine's matrix products allow, and peak memory at 1 and 8 times the rows.

The network is the specification's (fresh weights: speed does not depend on them), the rows are the reference cohort's. Before anything is timed, the
evaluator's outputs are compared with the network's own. `reward` takes a polars frame, checks it, and returns rewards; `forward_rows` starts at tensors.

The roofline is measured in the same process, between the timed runs: the network's largest products alone, in the same dtype and on as many rows at once.
A row needs `flop_per_row` operations in matrix products, so no arrangement of them evaluates more rows per second than roofline / flop_per_row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks.stamp import RESULTS, stamp
from embedcache.errors import UserError
from embedcache.store import open_cache
from fusionnet.assemble import Recipe, build_model, observed_tasks
from fusionnet.train.checkpoint import save_checkpoint
from fusionnet.train.runlog import write_json
from jobs.experiment import Experiment, load_experiment

REPOSITORY = Path(__file__).parents[1]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_ROWS = 60_000  # the larger of the two frames has 8 times as many


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/inference.json and .md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks inference", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 timed runs of 8,192 rows instead of 7 of 32,768")
    parser.add_argument("--json", type=Path, help="unset: benchmarks/results/inference.json")
    parser.add_argument("--peak", nargs=2, metavar=("RUN", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.peak:
        print(json.dumps(_peak(*arguments.peak)))
        return
    output = arguments.json or RESULTS / "inference.json"
    num_rows, num_runs = (8_192, 3) if arguments.quick else (32_768, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, rows_per_patient=8 * MEMORY_ROWS // 60)
        found: dict[str, Any] = {**stamp(), "num_rows": num_rows, "num_runs": num_runs, "threads": torch.get_num_threads(), **sizes(folder)}
        found["precisions"] = {precision: measure(folder, precision, num_rows, num_runs) for precision in PRECISIONS}
        found["peak_rss_bytes"] = peaks(folder)
    write_json(output, found)
    text = as_markdown(found)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def prepare(folder: Path, rows_per_patient: int) -> None:
    """Make cohort, stand-in encoder and cache, and a run folder with fresh weights as training would leave it."""
    run_module("jobs.make_cohort", "--out", str(folder / "cohort.parquet"), "--rows-per-patient", str(rows_per_patient))
    pl.read_parquet(folder / "cohort.parquet").sample(fraction=1.0, shuffle=True, seed=0).write_parquet(folder / "cohort.parquet", row_group_size=8192)
    run_module("jobs.make_encoder", "--out", str(folder / "encoder"), "--size", "polybert")
    experiment = _experiment(folder)
    overrides = [word for override in _overrides(folder) for word in ("--set", override)]
    run_module("jobs.build_cache", "--config", str(REPOSITORY / "configs" / "stage1.yaml"), *overrides)
    cache = open_cache(folder / "cache.zarr")
    recipe = Recipe(observed_tasks(experiment.tasks, cache.layout), (experiment.encoder,), experiment.model, experiment.loss, experiment.train)
    model = build_model(recipe, cache.layout, cache.scaling)
    names = [spec.name for spec in cache.layout.strings]
    (folder / "run").mkdir()
    content = {
        "epoch": 1,
        "model_state_dict": model.trainable_state(),
        "records": [{"epoch": 1}],
        "config": experiment.model_dump(mode="json"),
        "layout": cache.layout.model_dump_json(),
        "scaling": cache.scaling.to_json(),
        "strings": {name: cache.strings(name).text for name in names},
        "vectors": {name: cache.strings(name).embeddings for name in names},
        "identity": dict(cache.identity.parts),
    }
    save_checkpoint(folder / "run" / "stage1_best.pt", content)
    (folder / "run" / "stage1_config.yaml").write_text(experiment.to_yaml(), encoding="utf-8")


def _overrides(folder: Path) -> list[str]:
    return [
        f"data.path={folder / 'cohort.parquet'}",
        f"encoder.source={folder / 'encoder'}",
        f"cache.path={folder / 'cache.zarr'}",
        "encoder.mode=frozen",
        f"run.dir={folder / 'run'}",
    ]


def _experiment(folder: Path) -> Experiment:
    return load_experiment(REPOSITORY / "configs" / "stage1.yaml", _overrides(folder))


def run_module(*words: str) -> str:
    """Return what a command of this project prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout
