"""Real input: fusion networks on frozen vectors, LoRA, and gradient boosting, on the same rows of a
public table of polymer electrolytes.

For each split (whole polymers left out; random rows) the script builds the cache, trains and
evaluates each model by the project's own jobs, and fits the baselines of
`fusionnet.evaluation.baselines` to the same train rows. `--seeds` repeats all of it with other
splits and other initial weights.
`--lora` adds LoRA on the two top layers, every step of which encodes its polymers. `--only` runs
one split and leaves the other as it was published. `--quick` trains two networks on the first
split.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.harness.publish import (
    Panel,
    draw_bars,
    heading,
    output_path,
    parser,
    publish,
    table,
    tell,
    with_kept,
)
from benchmarks.harness.stamp import stamp
from embedcache.cache.reader import Cache, open_cache
from embedcache.config import SPLITS
from embedcache.errors import UserError
from fusionnet.evaluation.baselines import BASELINES
from fusionnet.metrics import regression_metrics

CONFIGS = {"whole polymers left out": "electrolyte.yaml", "random rows": "electrolyte_random.yaml"}
REPOSITORY = Path(__file__).parents[2]
FROZEN = ("encoder.mode=frozen",)
OURS = {
    "frozen vectors, joint fusion": FROZEN,
    "frozen vectors, joint fusion, linear skip": (*FROZEN, "model.linear_skip=true"),
    "frozen vectors as they are, joint fusion": (*FROZEN, "model.standardize_vectors=false"),
    "frozen vectors, modality fusion": (*FROZEN, "model.fusion=modality"),
    "frozen vectors, mlp fusion": (*FROZEN, "model.fusion=mlp"),
}
LORA = {"LoRA on two layers, joint fusion": ()}


def main(words: list[str]) -> None:
    """Run both splits and write benchmarks/results/electrolyte.json, .md and .png."""
    options = parser("electrolyte", __doc__)
    options.add_argument(
        "--table",
        type=Path,
        required=True,
        help="clean_train_data.csv of the public polymer electrolyte table",
    )
    options.add_argument(
        "--encoder",
        type=Path,
        required=True,
        help="a model folder, such as jobs.make_encoder writes",
    )
    options.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="repetitions with other splits and initial weights (3; quick: 1)",
    )
    options.add_argument(
        "--lora",
        action="store_true",
        help=(
            "train with LoRA too (whole polymers left out: twice the time; random rows: many times)"
        ),
    )
    options.add_argument(
        "--only", choices=CONFIGS, help="run one split; the other stays as the file has it"
    )
    arguments = options.parse_args(words)
    for needed in (arguments.table, arguments.encoder):
        if not needed.exists():
            raise UserError(f"there is no {needed}")
    made: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    seeds = range(1 if arguments.quick else arguments.seeds)
    fresh: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for split in (
            (arguments.only,)
            if arguments.only
            else tuple(CONFIGS)[: 1 if arguments.quick else None]
        ):
            results = [
                _split(REPOSITORY / "configs" / CONFIGS[split], arguments, Path(folder), seed)
                for seed in seeds
            ]
            models = _over_seeds([result["models"] for result in results])
            fresh[split] = {
                **results[0],
                "models": models,
                "seeds": len(seeds),
                **{key: made[key] for key in ("command", "commit", "date")},
            }
            tell(f"{split}: done")
    output = output_path("electrolyte", arguments)
    splits = with_kept(output, "splits", fresh, CONFIGS) if arguments.only else fresh
    publish(output, {**made, "splits": splits}, as_markdown, draw)


def _split(config: Path, arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Return the metrics of every model on the test rows of one split."""
    cache_path = folder / "cache.zarr"
    overrides = [
        f"data.path={arguments.table.resolve()}",
        f"encoder.source={arguments.encoder.resolve()}",
        f"cache.path={cache_path}",
    ]
    overrides += [
        f"split.seed={seed}",
        f"train.seed={seed}",
        *(["train.epochs=2"] if arguments.quick else []),
    ]
    common = [
        "--config",
        str(config),
        *(word for override in overrides for word in ("--set", override)),
    ]
    _run("-m", "jobs.build_cache", *common, "--overwrite")
    cache = open_cache(cache_path)
    ours = (dict(itertools.islice(OURS.items(), 2)) if arguments.quick else OURS) | (
        LORA if arguments.lora else {}
    )
    models = {
        name: _trained(common, changes, cache, folder / "run") for name, changes in ours.items()
    }
    for name, baseline in BASELINES.items():
        started = time.perf_counter()
        predictions = baseline(cache, 0, seed)
        models[name] = {**score(cache, predictions), "seconds": time.perf_counter() - started}
    return {
        "rows": dict(
            zip(
                SPLITS, np.bincount(cache.rows().split, minlength=len(SPLITS)).tolist(), strict=True
            )
        ),
        "distinct": {spec.name: spec.num_strings for spec in cache.layout.strings},
        "standin": any(spec.standin for spec in cache.layout.strings),
        "models": models,
    }


def _trained(
    common: Sequence[str], changes: Sequence[str], cache: Cache, run: Path
) -> dict[str, float]:
    """Return the test metrics of one of our models, at its best epoch on validation rows."""
    started = time.perf_counter()
    _run(
        str(REPOSITORY / "jobs" / "train.py"),
        *common,
        *(word for change in (*changes, f"run.dir={run}") for word in ("--set", change)),
        "--overwrite",
    )
    seconds = time.perf_counter() - started
    _run("-m", "jobs.evaluate_model", "--run", str(run), "--cache", str(cache.path))
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        **metrics["test"][cache.layout.targets[0].column],
        "epoch": metrics["epoch"],
        "seconds": seconds,
    }


def score(cache: Cache, predictions: Float[np.ndarray, " N"]) -> dict[str, float | None]:
    """Return the metrics of the first target on the test rows."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    return regression_metrics(rows.targets[test, 0], predictions[test])


def _over_seeds(results: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each model's mean metrics, and their standard deviation where there are several
    seeds.
    """
    models: dict[str, dict[str, float]] = {}
    for name, first in results[0].items():
        values = {key: [result[name][key] for result in results] for key in first}
        models[name] = {key: float(np.mean(numbers)) for key, numbers in values.items()}
        if len(results) > 1:
            models[name] |= {
                f"{key}_sd": float(np.std(numbers, ddof=1)) for key, numbers in values.items()
            }
    return models


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables."""
    lines = heading(
        "Ionic conductivity of polymer electrolytes, log10 S/cm, test rows",
        found,
        "Mean over seeds, ± standard deviation.",
    )
    for split, result in found["splits"].items():
        distinct = ", ".join(
            f"{number} distinct {name}" for name, number in result["distinct"].items()
        )
        rows = " / ".join(f"{number:,}" for number in result["rows"].values())
        lines += [
            f"## {split}",
            "",
            (
                f"`{result['command']}` at {result['commit']}, {result['date']}; {result['seeds']}"
                " seed(s)."
            ),
        ]
        lines.append(f"{rows} train / validation / test rows, {distinct}.")
        if result["standin"]:
            lines.append(
                "The encoder is a stand-in with random weights: what real polyBERT adds is not in"
                " these numbers."
            )
        cells = [
            (
                name,
                *(_cell(metrics, key) for key in ("mae", "rmse", "r2")),
                f"{metrics['seconds']:,.0f}",
            )
            for name, metrics in result["models"].items()
        ]
        lines += ["", *table(("model", "MAE", "RMSE", "R2", "seconds"), cells), ""]
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the error of every model, one panel per split."""
    panels = []
    for split, result in found["splits"].items():
        errors = {
            name: (metrics["mae"], metrics.get("mae_sd", 0.0))
            for name, metrics in result["models"].items()
        }
        bars = {name: (mean, mean - sd, mean + sd) for name, (mean, sd) in errors.items()}
        panels.append(
            Panel(
                split,
                "mean absolute error, log10 S/cm\n(lines: standard deviation over"
                f" {result['seeds']} seeds)",
                bars,
            )
        )
    draw_bars(path, panels, ours=[*OURS, *LORA])


def _cell(metrics: dict[str, float], key: str) -> str:
    beside = f" ± {metrics[f'{key}_sd']:.3f}" if f"{key}_sd" in metrics else ""
    return f"{metrics[key]:.3f}{beside}"


def _run(*words: str) -> None:
    """Run one of the project's jobs with this interpreter; its output goes to the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words[:2])} failed with exit code {done.returncode}")
