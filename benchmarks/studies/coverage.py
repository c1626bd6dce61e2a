"""Do intervals and probabilities keep their promise? On the reference cohort, patients being left
out of training, or polymers, over five seeds.

`fusionnet init` writes the config for a number and a class, of which only the split and the encoder
are set, and for `strings_in_turn` that five more trainings measure the errors, each leaving out
other strings; the run is evaluated on its test rows beside outcomes without noise. A promise is
judged on the mean over seeds, and on the worst group of any. Each result is written as it is found:
a run that is broken off goes on where it was.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.harness.cells import Column, Table, mean_and_sd, number
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.workers import run_python
from fusionnet.experiment import load_experiment
from fusionnet.train.runlog import write_json

NUMBER, CLASS = "delta_EF_pct", "is_optimal"
ROWS_PER_PATIENT = 500
SPLITS = {
    "patients": {"strategy": "group"},
    "strings": {"strategy": "leave_strings_out"},
    "strings_in_turn": {"strategy": "leave_strings_out"},
}
FOLDS = {"strings_in_turn": 5}  # calibration.folds
ORACLE = "oracle.parquet"


def main(words: list[str]) -> None:
    """Run what is asked for and write benchmarks/results/coverage.json, .md and .png."""
    options = parser("coverage", __doc__ or "")
    encoder = "a model folder, such as jobs.make_encoder writes"
    options.add_argument("--encoder", type=Path, required=True, help=encoder)
    options.add_argument("--only", nargs="+", choices=SPLITS, default=list(SPLITS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options.add_argument("--threads", type=int, default=2, help="of the training")
    options.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    arguments = options.parse_args(words)
    output = output_path("coverage", arguments)
    found = {**stamp(), "quick": arguments.quick, "cells": {}}
    if output.is_file():
        found["cells"] = json.loads(output.read_text())["cells"]
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), arguments)
        for name in arguments.only:
            for seed in arguments.seeds:
                own = found["cells"].setdefault(name, {})
                if str(seed) not in own:
                    own[str(seed)] = _measured(config, name, seed, arguments)
                    output.parent.mkdir(parents=True, exist_ok=True)
                    write_json(output, found)
                    tell(f"{name}, seed {seed}: {own[str(seed)]['covered']:.1%} inside")
    publish(output, found, report)


def _config(place: Path, arguments: argparse.Namespace) -> Path:
    """Write the cohort and the config that the defaults give."""
    whole, table, config = place / "whole.parquet", place / "table.parquet", place / "table.yaml"
    rows = str(50 if arguments.quick else ROWS_PER_PATIENT)
    words = ("--out", str(whole), "--rows-per-patient", rows, "--noise-free", str(place / ORACLE))
    run_python("-m", "jobs.make_cohort", *words)
    data = load_experiment(REPOSITORY / "configs" / "stage1.yaml").data
    columns = [each.column for each in (*data.strings, *data.numeric, *data.categories)]
    pl.scan_parquet(whole).select("patient_id", *columns, NUMBER, CLASS).sink_parquet(table)
    targets = ("--target", NUMBER, "--target", CLASS)
    encoder = ("--encoder", str(arguments.encoder.resolve()))
    words = (str(table), *targets, *encoder, "--out", str(config))
    run_python("-m", "jobs.init_config", *words)
    return config


def _measured(config: Path, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what became of the promises of one split and seed on its test rows."""
    values, run = yaml.safe_load(config.read_text()), config.with_name("run")
    values["split"] = {**SPLITS[name], "seed": seed}
    values["train"] |= {"seed": seed, "cpu_threads": arguments.threads, "baselines": False}
    if arguments.quick:
        values["train"] |= {"epochs": 1}
    values["cache"], values["run"] = {"path": str(config.with_suffix(".zarr"))}, {"dir": str(run)}
    values["calibration"] = {"folds": FOLDS.get(name, 0)}
    values["data"]["report_by"] = ["patient_id", "polymer_SMILES"]
    own = config.with_name("own.yaml")
    own.write_text(yaml.safe_dump(values, sort_keys=False))
    given = ["--config", str(own)]
    for change in arguments.set:
        given += ["--set", change]
    started = time.perf_counter()
    run_python("-m", "jobs.build_cache", *given, "--overwrite", shown=True)
    run_python("-m", "jobs.train", *given, "--overwrite", shown=True)
    words = ("--run", str(run), "--no-baselines", "--oracle", str(config.with_name(ORACLE)))
    run_python("-m", "jobs.evaluate_model", *words, shown=True)
    metrics = json.loads((run / "metrics.json").read_text())
    interval, sets = metrics["intervals"][NUMBER], metrics["intervals"][CLASS]
    worst = {each["column"]: each for each in interval["worst"]}
    return {
        "covered": interval["covered"],
        "guaranteed": interval["guaranteed"],
        "left_out": interval["left_out"]["mean"],
        "mean_width": interval["mean_width"],
        "oracle_width": interval["oracle_width"],
        "worst_patient": worst["patient_id"]["covered"],
        "worst_string": worst.get("polymer_SMILES", {}).get("covered"),
        "covered_by_sets": sets["covered"],
        "mean_size": sets["mean_size"],
        "ece": metrics["probabilities"][CLASS]["ece"],
        "mae": metrics["test"][NUMBER]["mae"],
        "oracle_share": metrics["oracle_share"][NUMBER]["r2"],
        "seconds": time.perf_counter() - started,
        **{key: stamp()[key] for key in ("commit", "date")},
        **({"set": arguments.set} if arguments.set else {}),
    }


def report(found: dict[str, Any]) -> Report:
    """Return what was promised and what was kept, by what was left out."""
    rows = [_row(name, by_seed) for name, by_seed in found["cells"].items()]
    columns = [
        Column("left out", lambda row: row["name"].replace("_", " "), str),
        Column("seeds", "seeds"),
        Column("inside 90 % intervals", lambda row: row["covered"], mean_and_sd),
        Column("expected by the run", lambda row: row.get("left_out", "\u2013"), _mean_if_any),
        Column("worst patient of any seed", lambda row: row["least_patient"], number),
        Column("worst string of any seed", lambda row: row["least_string"], number),
        Column("mean width", lambda row: row["mean_width"], mean_and_sd),
        Column("around noise-free outcomes", lambda row: row["oracle_width"], mean_and_sd),
        Column("inside 90 % sets", lambda row: row["covered_by_sets"], mean_and_sd),
        Column("classes in a set", lambda row: row["mean_size"], mean_and_sd),
        Column("ECE", lambda row: row["ece"], mean_and_sd),
        Column("MAE", lambda row: row["mae"], mean_and_sd),
        Column("seconds", lambda row: row["seconds"][0], ",.0f"),
    ]
    bars = {
        f"{name}, seed {seed}": (cell["covered"], cell["worst_patient"], cell["covered"])
        for name, by_seed in found["cells"].items()
        for seed, cell in by_seed.items()
    }
    return Report(
        "Promised and kept: 90 % intervals, sets and probabilities on rows that nobody trained on",
        (
            "Mean over seeds, ± standard deviation, of all defaults on the reference cohort. Worst:"
            " the least share inside of any patient, or string, of any seed. Expected by the run:"
            " what is inside of each unit that was measured, by the others' errors. The picture:"
            " the share inside, and down to that of the worst patient.",
        ),
        [Table(columns, rows)],
        [Panel("90 % intervals", "share of labels inside", bars)],
    )


def _mean_if_any(value: Any) -> str:
    """Return a mean with its deviation, or a dash of results that are older than it."""
    return value if isinstance(value, str) else mean_and_sd(value)


def _row(name: str, by_seed: dict[str, Any]) -> dict[str, Any]:
    """Return the means and standard deviations over seeds."""
    row: dict[str, Any] = {"name": name, "seeds": len(by_seed)}
    cells = list(by_seed.values())
    for key, value in cells[0].items():
        if isinstance(value, float):
            values = [cell[key] for cell in cells if cell[key] is not None]
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            row[key] = (float(np.mean(values)), sd)
    for kind in ("patient", "string"):
        least = [cell[f"worst_{kind}"] for cell in cells if cell[f"worst_{kind}"] is not None]
        row[f"least_{kind}"] = min(least) if least else None
    return row
