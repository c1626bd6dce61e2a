"""All defaults beside gradient boosting, from a table to the metrics of its test rows, by the
commands that a newcomer runs.

For each table: `fusionnet init` guesses the config, of which nothing is changed but the encoder
(`--encoder`, as the hub may be out of reach); then build, train and evaluate. The baselines of
`fusionnet.evaluation.baselines` are fitted to all of the same train rows. Tables are the synthetic
cohort in four sizes, left-out patients being the test, and the public ones that are given.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.harness.cells import Column, Table, number
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell, with_kept
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.workers import run_python
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.split import SPLITS
from embedcache.errors import UserError
from embedcache.text import count_of
from fusionnet.evaluation.baselines import BASELINES, BOOSTING, STRING_MEAN, TRAIN_MEAN
from fusionnet.experiment import load_experiment
from fusionnet.metrics import regression_metrics

PATIENTS = 60
ROWS_PER_PATIENT = {300: 5, 3_000: 50, 30_000: 500, 100_020: 1_667, 447_480: 7_458}
SIZES = (300, 3_000, 100_020, 447_480)
COHORT_TARGET = "delta_EF_pct"
FINGERPRINTS = "boosting, Morgan fingerprints"
ORACLE = "oracle.parquet"  # beside the cohort's table
OURS = "all defaults"
SHOWN = (TRAIN_MEAN, STRING_MEAN, BOOSTING, FINGERPRINTS)
Maker = Callable[[Path, argparse.Namespace], str]  # writes a table, returns its target


def main(words: list[str]) -> None:
    """Run all tables, or one, and write benchmarks/results/defaults.json, .md and .png."""
    options = parser("defaults", __doc__ or "")
    add_inputs(options)
    threads = "threads of the training (all cores); only its time depends on them"
    options.add_argument("--threads", type=int, help=threads)
    only = "run one table; the others stay as the file has them"
    options.add_argument("--only", choices=TABLES, help=only)
    arguments = options.parse_args(words)
    for needed in (arguments.encoder, arguments.egc, arguments.electrolyte):
        if needed is not None and not needed.exists():
            raise UserError(f"there is no {needed}")
    made: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    chosen = [arguments.only] if arguments.only else list(TABLES)[: 1 if arguments.quick else None]
    fresh = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            fresh[name] = {
                **_measured(TABLES[name], Path(folder), arguments),
                **{key: made[key] for key in ("command", "commit", "date")},
            }
        tell(f"{name}: done")
    output = output_path("defaults", arguments)
    tables = with_kept(output, "tables", fresh, TABLES) if arguments.only else fresh
    publish(output, {**made, "tables": tables}, report)


def add_inputs(options: argparse.ArgumentParser) -> None:
    """Add the options that name the encoder and the public tables."""
    encoder = "a model folder, such as jobs.make_encoder writes"
    options.add_argument("--encoder", type=Path, required=True, help=encoder)
    options.add_argument("--egc", type=Path, help="Egc.csv of the public band gaps of TransPolymer")
    electrolyte = "clean_train_data.csv of the public polymer electrolyte table"
    options.add_argument("--electrolyte", type=Path, help=electrolyte)


def cohort_table(num_rows: int) -> Maker:
    """Return what writes the cohort's features and one outcome in so many rows, and beside it all
    outcomes without noise.
    """

    def make(table: Path, arguments: argparse.Namespace) -> str:
        whole = table.with_name("cohort.parquet")
        rows = str(ROWS_PER_PATIENT[num_rows])
        without_noise = ("--noise-free", str(table.with_name(ORACLE)))
        words = ("--out", str(whole), "--rows-per-patient", rows, *without_noise)
        run_python("-m", "jobs.make_cohort", *words)
        data = load_experiment(REPOSITORY / "configs" / "stage1.yaml").data
        columns = [each.column for each in (*data.strings, *data.numeric, *data.categories)]
        pl.scan_parquet(whole).select("patient_id", *columns, COHORT_TARGET).sink_parquet(table)
        whole.unlink()
        return COHORT_TARGET

    return make


def given_table(option: str, target: str) -> Maker:
    """Return what copies a table that the command line names."""

    def make(table: Path, arguments: argparse.Namespace) -> str:
        source = getattr(arguments, option)
        if source is None:
            raise UserError(f"--{option} FILE says where that table is")
        pl.read_csv(source, infer_schema_length=None).write_parquet(table)
        return target

    return make


TABLES: dict[str, Maker] = {
    **{f"cohort, {rows:,} rows": cohort_table(rows) for rows in SIZES},
    "band gaps of polymers": given_table("egc", "value"),
    "polymer electrolytes": given_table("electrolyte", "conductivity"),
}


def _measured(make: Maker, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the commands make of one table, and the baselines on its test rows."""
    table, config = folder / "table.parquet", folder / "table.yaml"
    target = make(table, arguments)
    encoder = ["--encoder", str(arguments.encoder.resolve())]
    words = ["-m", "jobs.init_config", str(table), "--target", target, *encoder]
    seconds = {"init": _timed(*words, "--out", str(config))}
    given = ["--config", str(config)]
    for key, place in (("cache.path", folder / "cache.zarr"), ("run.dir", folder / "run")):
        given += ["--set", f"{key}={place}"]
    if arguments.threads is not None:
        given += ["--set", f"train.cpu_threads={arguments.threads}"]
    seconds["build"] = _timed("-m", "jobs.build_cache", *given)
    seconds["train"] = _timed("-m", "jobs.train", *given)
    seconds["evaluate"] = _timed("-m", "jobs.evaluate_model", "--run", str(folder / "run"))
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    (written,) = (folder / "run").glob("*_config.yaml")
    train = yaml.safe_load(written.read_text())["train"]
    cache = open_cache(folder / "cache.zarr")
    return {
        "threads": arguments.threads,
        "rows": np.bincount(cache.rows().split, minlength=len(SPLITS)).tolist(),
        "strings": sum(spec.num_strings for spec in cache.layout.strings),
        "standin": any(spec.standin for spec in cache.layout.strings),
        "split": metrics["split_strategy"],
        "epoch": metrics["epoch"],
        "epochs": train["epochs"],
        "batch_rows": train["batch_rows"],
        "seconds": seconds,
        "models": {OURS: metrics["test"][target], **_baselines(cache)},
    }


def _timed(*words: str) -> float:
    started = time.perf_counter()
    run_python(*words, shown=True)
    return time.perf_counter() - started


def _baselines(cache: Cache) -> dict[str, Any]:
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    found = {}
    for name in SHOWN:
        predicted = BASELINES[name](cache, 0, 0)[test, 0]
        found[name] = regression_metrics(rows.targets[test, 0], predicted)
    return found


def report(found: dict[str, Any]) -> Report:
    """Return the error of each model on each table, and how far the defaults are from boosting."""
    lines = [{"name": name, **each} for name, each in found["tables"].items()]
    columns = [
        Column("table", "name"),
        Column("train rows", lambda row: row["rows"][0], ",d"),
        Column("strings", "strings", ",d"),
        Column("split", "split"),
        Column("batch, epochs", lambda row: f"{row['batch_rows']:,}, {row['epochs']}"),
        Column("minutes", _minutes),
        *(
            Column(name, lambda row, name=name: row["models"][name]["mae"], number)
            for name in (OURS, *SHOWN)
        ),
        Column("to the better boosting", beside_boosting, _percent),
    ]
    panels = [
        Panel(
            name,
            "mean absolute error of test rows, in the target's unit",
            {model: metrics["mae"] for model, metrics in each["models"].items()},
            ours=[OURS],
        )
        for name, each in found["tables"].items()
    ]
    standin = any(each["standin"] for each in found["tables"].values())
    return Report(
        "All defaults, from `fusionnet init` to test rows: mean absolute errors beside boosting",
        (
            "Nothing is set but the encoder; minutes are those of init, build, train and evaluate.",
            *(["The encoder is a stand-in with random weights."] if standin else []),
        ),
        [Table(columns, lines)],
        panels,
    )


def _minutes(row: dict[str, Any]) -> str:
    minutes, threads = sum(row["seconds"].values()) / 60, row["threads"]
    return f"{minutes:.1f}" + ("" if threads is None else f" ({count_of(threads, 'thread')})")


def beside_boosting(row: dict[str, Any]) -> float:
    """Return how much more the error is than that of the better of the two boostings."""
    best = min(row["models"][name]["mae"] for name in (BOOSTING, FINGERPRINTS))
    return row["models"][OURS]["mae"] / best - 1


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %"
