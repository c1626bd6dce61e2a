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
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.harness.cells import Column, Table, counts, mean_and_sd, named
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell, with_kept
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.workers import run_python
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.split import SPLITS
from embedcache.errors import UserError
from fusionnet.evaluation.baselines import BASELINES
from fusionnet.metrics import regression_metrics

CONFIGS = {"whole polymers left out": "electrolyte.yaml", "random rows": "electrolyte_random.yaml"}
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
    options = parser("electrolyte", __doc__ or "")
    table = "clean_train_data.csv of the public polymer electrolyte table"
    options.add_argument("--table", type=Path, required=True, help=table)
    encoder = "a model folder, such as jobs.make_encoder writes"
    options.add_argument("--encoder", type=Path, required=True, help=encoder)
    repeated = "repetitions with other splits and initial weights (3; quick: 1)"
    options.add_argument("--seeds", type=int, default=3, help=repeated)
    lora = "train with LoRA too (whole polymers left out: twice the time; random rows: many times)"
    options.add_argument("--lora", action="store_true", help=lora)
    only = "run one split; the other stays as the file has it"
    options.add_argument("--only", choices=CONFIGS, help=only)
    arguments = options.parse_args(words)
    for needed in (arguments.table, arguments.encoder):
        if not needed.exists():
            raise UserError(f"there is no {needed}")
    made: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    seeds = range(1 if arguments.quick else arguments.seeds)
    chosen = [arguments.only] if arguments.only else list(CONFIGS)[: 1 if arguments.quick else None]
    fresh: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for split in chosen:
            config = REPOSITORY / "configs" / CONFIGS[split]
            results = [_split(config, arguments, Path(folder), seed) for seed in seeds]
            fresh[split] = {
                **results[0],
                "models": over_seeds([result["models"] for result in results]),
                "seeds": len(seeds),
                **{key: made[key] for key in ("command", "commit", "date")},
            }
            tell(f"{split}: done")
    output = output_path("electrolyte", arguments)
    splits = with_kept(output, "splits", fresh, CONFIGS) if arguments.only else fresh
    publish(output, {**made, "splits": splits}, report)


def _split(config: Path, arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Return the metrics of every model on the test rows of one split."""
    cache_path = folder / "cache.zarr"
    overrides = [
        f"data.path={arguments.table.resolve()}",
        f"encoder.source={arguments.encoder.resolve()}",
        f"cache.path={cache_path}",
        f"split.seed={seed}",
        f"train.seed={seed}",
        *(["train.epochs=2"] if arguments.quick else []),
    ]
    common = ["--config", str(config), *_set(overrides)]
    run_python("-m", "jobs.build_cache", *common, "--overwrite", shown=True)
    cache = open_cache(cache_path)
    ours = dict(list(OURS.items())[: 2 if arguments.quick else None])
    models = {
        name: _trained(common, changes, cache, folder / "run")
        for name, changes in (ours | (LORA if arguments.lora else {})).items()
    }
    for name, baseline in BASELINES.items():
        started = time.perf_counter()
        metrics = score(cache, baseline(cache, 0, seed)[:, 0])
        models[name] = {**metrics, "seconds": time.perf_counter() - started}
    num_rows = np.bincount(cache.rows().split, minlength=len(SPLITS)).tolist()
    return {
        "rows": dict(zip(SPLITS, num_rows, strict=True)),
        "distinct": {spec.name: spec.num_strings for spec in cache.layout.strings},
        "standin": any(spec.standin for spec in cache.layout.strings),
        "models": models,
    }


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _trained(
    common: Sequence[str], changes: Sequence[str], cache: Cache, run: Path
) -> dict[str, float]:
    """Return the test metrics of one of our models, at its best epoch on validation rows."""
    started = time.perf_counter()
    changed = _set([*changes, f"run.dir={run}"])
    run_python("jobs/train.py", *common, *changed, "--overwrite", shown=True)
    seconds = time.perf_counter() - started
    folders = ("--run", str(run), "--cache", str(cache.path))
    run_python("-m", "jobs.evaluate_model", *folders, shown=True)
    metrics = json.loads((run / "metrics.json").read_text())
    test = metrics["test"][cache.layout.targets[0].column]
    return {**test, "epoch": metrics["epoch"], "seconds": seconds}


def score(cache: Cache, predictions: Float[np.ndarray, " N"]) -> dict[str, float | None]:
    """Return the metrics of the first target on the test rows."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    return regression_metrics(rows.targets[test, 0], predictions[test])


def over_seeds(results: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each model's mean metrics, with standard deviations (`_sd`) of several seeds."""
    models: dict[str, dict[str, float]] = {}
    for name, first in results[0].items():
        values = {key: [result[name][key] for result in results] for key in first}
        models[name] = {key: float(np.mean(own)) for key, own in values.items()}
        if len(results) > 1:
            spreads = {f"{key}_sd": float(np.std(own, ddof=1)) for key, own in values.items()}
            models[name] |= spreads
    return models


def report(found: dict[str, Any]) -> Report:
    """Return every model's error on each split."""
    columns = [Column("model", "name")]
    columns += [
        Column(title, lambda row, key=key: (row[key], row.get(f"{key}_sd")), mean_and_sd)
        for title, key in (("MAE", "mae"), ("RMSE", "rmse"), ("R2", "r2"))
    ]
    columns.append(Column("seconds", "seconds", ",.0f"))
    blocks: list[str | Table] = []
    panels = []
    for split, result in found["splits"].items():
        blocks += [f"## {split}", _how(result), Table(columns, named(result["models"]))]
        unit = (
            "mean absolute error, log10 S/cm\n(lines: standard deviation over"
            f" {result['seeds']} seeds)"
        )
        bars = {}
        for name, metrics in result["models"].items():
            mean, sd = metrics["mae"], metrics.get("mae_sd", 0.0)
            bars[name] = (mean, mean - sd, mean + sd)
        panels.append(Panel(split, unit, bars, ours=[*OURS, *LORA]))
    return Report(
        "Ionic conductivity of polymer electrolytes, log10 S/cm, test rows",
        ("Mean over seeds, ± standard deviation.",),
        blocks,
        panels,
    )


def _how(result: dict[str, Any]) -> str:
    """Return how a split was run."""
    distinct = ", ".join(f"{num} distinct {name}" for name, num in result["distinct"].items())
    made = f"`{result['command']}` at {result['commit']}, {result['date']}"
    lines = [
        f"{made}; {result['seeds']} seed(s).",
        f"{counts(result['rows'])}, {distinct}.",
    ]
    if result["standin"]:
        lines.append(
            "The encoder is a stand-in with random weights: what real polyBERT adds is not in"
            " these numbers."
        )
    return "\n".join(lines)
