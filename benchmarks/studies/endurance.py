"""Whether memory stays flat: in a training of more than ten thousand optimizer steps, rows resident
and streamed, and in the prediction of up to ten million rows.

Small on purpose (a tiny encoder and network, 8,640 rows): what would leak leaks per step, per epoch
and per row, whatever a step costs. A training's peak memory is in its log, epoch by epoch; what it
reached after an eighth of the epochs (threads started, buffers filled, the first checkpoints
written) is compared with its end. A prediction's is its process's own.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.harness.cells import Column, Table, mib
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.workers import run_python

TRAININGS = ("resident", "streaming")
FORMATS = ("parquet", "csv")
TINY = (
    "model.fusion_width=32",
    "model.feedforward=32",
    "model.num_layers=1",
    "model.adapter_hidden=32",
    "model.adapter_width=16",
    "model.numeric_hidden=16",
    "model.numeric_width=16",
    "train.precision=fp32",
    "train.cpu_threads=1",
)
ROWS_PER_PATIENT = 144  # of 60 patients, 42 of them for training


def main(words: list[str]) -> None:
    """Train and predict, and write benchmarks/results/endurance.*."""
    command = parser("endurance", __doc__ or "")
    command.add_argument("--steps", type=int, default=10_000, help="of a training, at least")
    command.add_argument(
        "--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="to predict"
    )
    chosen = command.parse_args(words)
    if chosen.quick:
        vars(chosen).update(steps=200, rows=[10_000, 20_000])
    found: dict[str, Any] = {**stamp(), "quick": chosen.quick, "trainings": {}, "predictions": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for rows in TRAININGS:
            tell(f"now training, rows {rows}")
            found["trainings"][rows] = train(folder, rows, chosen.steps)
        for num_rows in chosen.rows:
            for form in FORMATS:
                tell(f"now predicting {num_rows:,} rows, {form}")
                found["predictions"].append(predict(folder, num_rows, form))
    publish(output_path("endurance", chosen), found, report)


def prepare(folder: Path) -> None:
    """Make a cohort, a tiny encoder and their cache."""
    cohort = ("--out", str(folder / "cohort.parquet"))
    run_python("-m", "jobs.make_cohort", *cohort, "--rows-per-patient", str(ROWS_PER_PATIENT))
    run_python("-m", "jobs.make_encoder", "--out", str(folder / "encoder"), "--size", "tiny")
    run_python("-m", "jobs.build_cache", *config(folder, "cache.rows_per_chunk=256"))


def config(folder: Path, *overrides: str) -> list[str]:
    """Return the words that name the config of this study."""
    every = (
        f"data.path={folder / 'cohort.parquet'}",
        f"encoder.source={folder / 'encoder'}",
        f"cache.path={folder / 'cache.zarr'}",
        *TINY,
        *overrides,
    )
    words = [word for override in every for word in ("--set", override)]
    return ["--config", str(REPOSITORY / "configs" / "stage1.yaml"), *words]


def train(folder: Path, rows: str, num_steps: int) -> dict[str, Any]:
    """Return what a training of at least so many steps had for its peak, at its quarters."""
    batch_rows = 32
    steps_per_epoch = -(-42 * ROWS_PER_PATIENT // batch_rows)
    epochs = max(8, -(-num_steps // steps_per_epoch))
    run = folder / f"run_{rows}"
    overrides = (
        f"run.dir={run}",
        f"train.rows={rows}",
        "train.rows_memory_mib=1" if rows == "streaming" else "train.rows_memory_mib=64",
        f"train.batch_rows={batch_rows}",
        f"train.epochs={epochs}",
        f"train.early_stopping.patience={epochs}",
    )
    run_python("-m", "jobs.train", *config(folder, *overrides))
    records = json.loads((run / "training_log.json").read_text())
    peaks = [record["peak_rss_bytes"] for record in records]
    shares = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "end": 1.0}
    return {
        "steps": epochs * steps_per_epoch,
        "epochs": epochs,
        "seconds": sum(record["seconds"] for record in records),
        "peak_rss_bytes": {name: peaks[int(share * epochs) - 1] for name, share in shares.items()},
    }


def predict(folder: Path, num_rows: int, form: str) -> dict[str, Any]:
    """Return the peak memory of a prediction, by the command, of a file of so many rows."""
    source, target = folder / f"rows.{form}", folder / f"predicted.{form}"
    cohort = pl.scan_parquet(folder / "cohort.parquet")
    copies = -(-num_rows // (60 * ROWS_PER_PATIENT))
    many = pl.concat([cohort] * copies).head(num_rows)
    if form == "csv":
        many.sink_csv(source)
    else:
        many.sink_parquet(source, row_group_size=8192)
    files = ("--input", str(source), "--output", str(target))
    ended = run_python("-m", "jobs.predict", "--run", str(folder / "run_resident"), *files)
    scan = pl.scan_csv(target) if form == "csv" else pl.scan_parquet(target)
    written = scan.select(pl.len()).collect().item()
    assert written == num_rows, f"{written} of {num_rows} rows were predicted"
    return {"rows": num_rows, "format": form, "peak_rss_bytes": ended.peak_rss_bytes}


def report(found: dict[str, Any]) -> Report:
    """Return what is to be read and seen."""
    trainings = [{"rows": rows, **each} for rows, each in found["trainings"].items()]
    moments = {
        "eighth": "MiB after an eighth",
        "quarter": "a quarter",
        "half": "half",
        "end": "all of them",
    }
    peaks = [Column(title, f"peak_rss_bytes.{name}", mib) for name, title in moments.items()]
    columns = [Column("rows", "rows"), Column("optimizer steps", "steps", ",d"), *peaks]
    of_rows = [
        Column("rows predicted", "rows", ",d"),
        Column("format", "format"),
        Column("peak memory, MiB", "peak_rss_bytes", mib),
    ]
    panels = [
        Panel(
            f"{rows} rows, {each['steps']:,} steps",
            "peak memory, MiB",
            {name: peak / 2**20 for name, peak in each["peak_rss_bytes"].items()},
        )
        for rows, each in found["trainings"].items()
    ]
    panels.append(
        Panel(
            "prediction",
            "peak memory, MiB",
            {
                f"{each['rows']:,} {each['format']}": each["peak_rss_bytes"] / 2**20
                for each in found["predictions"]
            },
        )
    )
    return Report(
        "Memory over many steps and rows",
        [
            "Tiny encoder and network; each training and prediction in a process of its own, whose"
            " resident memory's peak is given."
        ],
        [Table(columns, trainings), Table(of_rows, found["predictions"])],
        panels,
    )
