"""Real input: LoRA of the encoder beside gradient boosting, on the same rows of a public table of polymer electrolytes.

For each split (whole polymers left out; random rows) the script builds the cache, trains with the prefix cache, evaluates, and fits
HistGradientBoosting on the same train rows with strings as one-hot columns and as Morgan fingerprints; its number of trees is chosen on the validation
rows. The last line of the table is the mean of the train rows.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, r2_score

from benchmarks.stamp import RESULTS, stamp
from embedcache.errors import UserError
from embedcache.splits import SPLITS
from embedcache.store import Cache, open_cache
from fusionnet.train.runlog import write_json

CONFIGS = {"whole polymers left out": "electrolyte.yaml", "random rows": "electrolyte_random.yaml"}
REPOSITORY = Path(__file__).parents[1]
MOST_TREES, TREES_PER_LOOK = 600, 20
FINGERPRINT_BITS, FINGERPRINT_RADIUS = 512, 2


def main(words: list[str]) -> None:
    """Run both splits and write benchmarks/results/electrolyte.json and .md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks electrolyte", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="clean_train_data.csv of the public polymer electrolyte table")
    parser.add_argument("--encoder", type=Path, required=True, help="a model folder, such as jobs.make_encoder writes")
    parser.add_argument("--quick", action="store_true", help="two epochs")
    parser.add_argument("--json", type=Path, default=RESULTS / "electrolyte.json")
    arguments = parser.parse_args(words)
    for needed in (arguments.table, arguments.encoder):
        if not needed.exists():
            raise UserError(f"there is no {needed}")
    found: dict[str, Any] = {**stamp(), "splits": {}}
    with tempfile.TemporaryDirectory() as folder:
        for split, config in CONFIGS.items():
            found["splits"][split] = _split(REPOSITORY / "configs" / config, arguments, Path(folder))
            text = as_markdown(found)
            write_json(arguments.json, found)
            arguments.json.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _split(config: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the metrics of every model on the test rows of one split."""
    cache_path, run = folder / "cache.zarr", folder / config.stem
    overrides = [f"data.path={arguments.table.resolve()}", f"encoder.source={arguments.encoder.resolve()}", f"cache.path={cache_path}", f"run.dir={run}"]
    overrides += ["train.epochs=2"] if arguments.quick else []
    common = ["--config", str(config), *(word for override in overrides for word in ("--set", override))]
    _run("-m", "jobs.build_cache", *common, "--overwrite")
    started = time.perf_counter()
    _run(str(REPOSITORY / "jobs" / "train.py"), *common)
    seconds = time.perf_counter() - started
    _run("-m", "jobs.evaluate_model", "--run", str(run), "--cache", str(cache_path))
    metrics = json.loads((run / "metrics.json").read_text())
    cache = open_cache(cache_path)
    column = cache.layout.targets[0].column
    counts = np.bincount(cache.rows().split, minlength=len(SPLITS))
    models = {"this project: LoRA and fusion network": {**metrics["test"][column], "seconds": seconds}}
    for name, features in (("HistGradientBoosting, strings one-hot", one_hot(cache)), ("HistGradientBoosting, Morgan fingerprints", fingerprints(cache))):
        models[name] = boosting(cache, features)
    rows = cache.rows()
    models["mean of the train rows"] = _metrics(rows, np.full(len(rows.split), rows.targets[rows.split == 0, 0].mean()))
    shutil.rmtree(run)
    return {
        "rows": dict(zip(SPLITS, counts.tolist(), strict=True)),
        "distinct": {spec.name: spec.num_strings for spec in cache.layout.strings},
        "epoch": metrics["epoch"],
        "standin": metrics["standin"],
        "models": models,
    }


def one_hot(cache: Cache) -> Float[np.ndarray, "N F"]:
    """Return one column per distinct string that has train rows."""
    rows = cache.rows()
    parts = [np.eye(spec.num_strings, dtype=np.float32)[rows.string_id[:, place]] for place, spec in enumerate(cache.layout.strings)]
    return np.concatenate([part[:, part[rows.split == 0].any(0)] for part in parts], axis=1)


def fingerprints(cache: Cache) -> Float[np.ndarray, "N F"]:
    """Return Morgan fingerprints (Rogers and Hahn 2010) of all string columns; an empty string has none."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS)
    rows, parts = cache.rows(), []
    for place, spec in enumerate(cache.layout.strings):
        texts = cache.strings(spec.name).text
        table = np.stack([generator.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in texts]).astype(np.float32)
        parts.append(table[rows.string_id[:, place]])
    return np.concatenate(parts, axis=1)


def boosting(cache: Cache, strings: Float[np.ndarray, "N F"]) -> dict[str, float]:
    """Return the test metrics of gradient boosting on string features and numeric features, trees added until the validation rows gain no more."""
    rows = cache.rows()
    features, target = np.concatenate([strings, rows.numeric], axis=1), rows.targets[:, 0]
    train, validation = (rows.split == code for code in (0, 1))
    started = time.perf_counter()
    model = HistGradientBoostingRegressor(max_iter=MOST_TREES, learning_rate=0.1, early_stopping=False, random_state=0)
    model.fit(features[train], target[train])
    errors = [mean_absolute_error(target[validation], predicted) for predicted in model.staged_predict(features[validation])]
    num_trees = int(np.argmin(errors)) + 1
    predictions = next(predicted for number, predicted in enumerate(model.staged_predict(features), 1) if number == num_trees)
    return {**_metrics(rows, predictions), "trees": num_trees, "seconds": time.perf_counter() - started}


def _metrics(rows: Any, predictions: Float[np.ndarray, " N"]) -> dict[str, float]:
    test: Int[np.ndarray, " M"] = np.flatnonzero(rows.split == SPLITS.index("test"))
    target, predicted = rows.targets[test, 0], predictions[test]
    rmse = float(np.sqrt(np.mean((target - predicted) ** 2)))
    return {"mae": float(mean_absolute_error(target, predicted)), "rmse": rmse, "r2": float(r2_score(target, predicted))}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables."""
    lines = ["# Ionic conductivity of polymer electrolytes, log10 S/cm, test rows", "", f"`{found['command']}` at {found['commit']}, {found['date']},"]
    lines.append(f"{found['hardware']['processor']}, {found['hardware']['cores']} cores, torch {found['versions']['torch']}.")
    for split, result in found["splits"].items():
        distinct = ", ".join(f"{number} distinct {name}" for name, number in result["distinct"].items())
        rows = " / ".join(f"{number:,}" for number in result["rows"].values())
        lines += ["", f"## {split}", "", f"{rows} train / validation / test rows, {distinct}."]
        if result["standin"]:
            lines.append("The encoder is a stand-in with random weights: what real polyBERT adds is not in these numbers.")
        lines += ["", "| model | MAE | RMSE | R2 | seconds |", "|---|---|---|---|---|"]
        for name, metrics in result["models"].items():
            seconds = f"{metrics['seconds']:,.0f}" if "seconds" in metrics else ""
            lines.append(f"| {name} | {metrics['mae']:.3f} | {metrics['rmse']:.3f} | {metrics['r2']:.3f} | {seconds} |")
    return "\n".join(lines) + "\n"


def _run(*words: str) -> None:
    """Run one of the project's jobs with this interpreter; its output goes to the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words[:2])} failed with exit code {done.returncode}")
