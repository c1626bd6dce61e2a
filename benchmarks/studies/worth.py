"""Is it worth it? What the defaults give, beside the best that a user would pick, on real tables
and the synthetic cohort, over several seeds.

A task is a table and what is left out of training. For each seed `fusionnet init` writes the
config, of which only the split and the encoder are set; then folds are trained (`jobs.
cross_validate`) or, for the cohort, one split. Baselines and rivals (`benchmarks.rivals`) read the
same cache, so the same train, validation and test rows. Errors are mean absolute errors of test
rows, the mean over folds. Each result is written as it is found: a run that is broken off goes on
where it was, and `--only`, `--models` and `--seeds` choose.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Column, Table, mean_and_sd, number
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from benchmarks.rivals import RIVALS
from benchmarks.studies.defaults import add_inputs
from benchmarks.studies.worth_models import (
    ABLATIONS,
    OURS,
    SHOWN,
    TASKS,
    WITHOUT_ENCODER,
    config_of,
    is_ours,
    metrics_of_ours,
    metrics_of_rival,
    views,
)
from fusionnet.train.runlog import write_json


def main(words: list[str]) -> None:
    """Run what is asked for and write benchmarks/results/worth.json, .md and .png."""
    arguments = _options().parse_args(words)
    output = output_path("worth", arguments)
    found = {**stamp(), "quick": arguments.quick, "error": {}, "cells": _kept(output)}
    for name in arguments.only or list(TASKS):
        for seed in arguments.seeds:
            for model, cell in _cells(name, seed, arguments, found["cells"]):
                found["cells"] = _kept(output)  # another process may have written meanwhile
                found["cells"].setdefault(name, {}).setdefault(model, {})[str(seed)] = cell
                found["error"] = _errors(found["cells"])
                output.parent.mkdir(parents=True, exist_ok=True)
                write_json(output, found)
                tell(f"{name}, seed {seed}: {model} {cell['mae']:.4f} in {cell['seconds']:,.0f} s")
    publish(output, found, report)


def _kept(output: Path) -> dict[str, Any]:
    """Return the cells that the file has: by task, model and seed."""
    return json.loads(output.read_text())["cells"] if output.is_file() else {}


def _options() -> argparse.ArgumentParser:
    options = parser("worth", __doc__ or "")
    add_inputs(options)
    options.add_argument("--only", nargs="+", choices=TASKS, help="these tasks (all)")
    models = "these models (ours, baselines and rivals; ablations only if they are named)"
    names = [OURS, *SHOWN, *RIVALS, *ABLATIONS]
    plain = names[: -len(ABLATIONS)]
    options.add_argument("--models", nargs="+", choices=names, default=plain, help=models)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--threads", type=int, default=2, help="of each model")
    options.add_argument("--set", action="append", default=[], help="KEY=VALUE for ours")
    return options


def _cells(
    name: str, seed: int, arguments: argparse.Namespace, done: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models of one task and seed that are not done yet, each with what was found."""
    own = done.get(name, {})
    wanted = [model for model in arguments.models if str(seed) not in own.get(model, {})]
    if not wanted:
        return
    setting, made = TASKS[name], {key: stamp()[key] for key in ("commit", "date")}
    made["encoder"] = arguments.encoder.name
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = config_of(setting, place, seed, arguments)
        for model in wanted:
            started = time.perf_counter()
            if is_ours(model):
                changes = ABLATIONS.get(model, ())
                metrics = metrics_of_ours(setting, place, config, changes, arguments)
            else:
                caches = views(setting, place, config)
                metrics = [metrics_of_rival(model, cache, seed, arguments) for cache in caches]
            seconds = time.perf_counter() - started
            cell = {**_mean(metrics), "folds": metrics, "seconds": seconds, **made}
            yield model, cell | ({"set": arguments.set} if arguments.set else {})


def _mean(metrics: list[dict[str, Any]]) -> dict[str, float]:
    keys = [key for key in ("mae", "r2", "oracle_share") if key in metrics[0]]
    return {key: float(np.mean([fold[key] for fold in metrics])) for key in keys}


def _errors(cells: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return each model's mean absolute errors, one per seed, by task."""
    return {
        task: {
            model: [by_seed[seed]["mae"] for seed in sorted(by_seed)]
            for model, by_seed in models.items()
            if model not in ABLATIONS
        }
        for task, models in cells.items()
    }


def report(found: dict[str, Any]) -> Report:
    """Return each task's errors, ours first, and how far it is from the best rival."""
    blocks: list[str | Table] = []
    panels = []
    for task, models in found["cells"].items():
        rows = [_row(name, by_seed) for name, by_seed in models.items()]
        shares = {name: _share(by_seed, models) for name, by_seed in models.items()}
        columns = [
            Column("model", "name"),
            Column("MAE", lambda row: (row["mae"], row["mae_sd"]), mean_and_sd),
            Column("R2", lambda row: (row["r2"], row["r2_sd"]), mean_and_sd),
            Column("of the oracle's R2", lambda row: row["oracle_share"], number),
            Column(
                "of the best rival's error",
                lambda row, shares=shares: shares[row["name"]],
                number,
            ),
            Column("seeds", "seeds"),
            Column("seconds", "seconds", ",.0f"),
            Column("at", "at"),
            Column("encoder", "encoder"),
        ]
        order = sorted(rows, key=lambda row: (row["name"] in ABLATIONS, row["mae"]))
        blocks += [f"## {task}", Table(columns, order)]
        bars = {row["name"]: _bar(row) for row in order if row["name"] not in ABLATIONS}
        panels.append(Panel(task, "MAE of test rows", bars, ours=[OURS]))
    return Report(
        "What the defaults are worth: mean absolute errors of test rows beside what else there is",
        (
            "Mean over seeds, ± standard deviation; of five folds where rows or polymers are left"
            " out. Beside the best rival: the least error of those that have the line's seeds too,"
            " on these seeds. A line has the commits that it was made at, and the folder of the"
            " encoder that it used. Below the models stand ablations: what each part of the"
            " defaults does alone.",
        ),
        blocks,
        panels,
    )


def _row(name: str, by_seed: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "seeds": len(by_seed)}
    row["at"] = ", ".join(sorted({cell["commit"] for cell in by_seed.values()}))
    reads_vectors = is_ours(name) and WITHOUT_ENCODER not in ABLATIONS.get(name, ())
    encoders = {cell.get("encoder") for cell in by_seed.values()} if reads_vectors else ()
    row["encoder"] = ", ".join(sorted(filter(None, encoders))) or "-"
    for key in ("mae", "r2", "oracle_share", "seconds"):
        values = [cell[key] for cell in by_seed.values() if key in cell]
        row[key] = float(np.mean(values)) if values else None
        row[f"{key}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return row


def _bar(row: dict[str, Any]) -> tuple[float, float, float]:
    """Return a mean with the ends of its standard deviation."""
    mean, sd = row["mae"], row["mae_sd"] or 0.0
    return mean, mean - sd, mean + sd


def _share(by_seed: dict[str, Any], models: dict[str, Any]) -> float | None:
    """Return an error beside the least of the rivals that have these seeds too, on these alone."""
    errors = [
        _mean_error(rival, by_seed)
        for name, rival in models.items()
        if not is_ours(name) and by_seed.keys() <= rival.keys()
    ]
    return _mean_error(by_seed, by_seed) / min(errors) if errors else None


def _mean_error(by_seed: dict[str, Any], seeds: Iterable[str]) -> float:
    return float(np.mean([by_seed[seed]["mae"] for seed in seeds]))
