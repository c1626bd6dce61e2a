"""Ten million designs for a new patient: seconds, memory, and what the best of them are worth.

A network is trained on the reference cohort (stage1_modality.yaml, vectors of a tiny stand-in
encoder, few rows of each patient), and `fusionnet design` searches for patients that its table does
not have. The cohort's outcome model then says what designs are worth without noise: the top, which
were picked because their predictions are great, and random ones, which were not. How much more is
promised of the former is the winner's curse that the command's text speaks of.

Seconds are of the whole search, with what is judged again in fp32; CPU seconds are of all threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from benchmarks.harness.cells import Column, Table, mib
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.workers import run_python
from fusionnet import RewardModel
from fusionnet.design.deriving import from_rows, read_rows
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.workflow.designing import DesignRequest, design
from jobs.cohort.generate import FORMULATION_COLUMNS, PATIENT_COLUMNS, calibrate
from jobs.cohort.outcomes import Columns, latent_effects, noise_free
from jobs.cohort.polymers import chemistry_of

ROWS_PER_PATIENT, NUM_KNOWN, NUM_NEW = 500, 60, 3
NUM_RANDOM = 2_000
GOAL = 10_000_000  # designs in ten minutes on two cores
COLUMNS = (
    Column("designs", "num_rows"),
    Column("precision", "precision"),
    Column("seconds", "seconds", ".0f"),
    Column("designs/s", "rows_per_s", ",.0f"),
    Column("CPU seconds", "cpu_seconds", ".0f"),
    Column("designs per CPU second", "rows_per_cpu_s", ",.0f"),
    Column("peak memory", "peak_rss_bytes", lambda peak: f"{mib(peak)} MiB"),
)
WORTH = (
    Column("patient", "patient"),
    Column("designs", "what"),
    Column("reward promised", "reward_promised", ".2f"),
    Column("without noise", "reward_true", ".2f"),
    Column("EF promised", "ef_promised", ".2f"),
    Column("EF without noise", "ef_true", ".2f"),
    Column("EF in its 90 % interval", "ef_inside", ".0%"),
)


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/design.*."""
    command = parser("design", __doc__ or "")
    command.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    command.add_argument(
        "--candidates", type=int, default=10_000_000, metavar="N", help="designs (10000000)"
    )
    command.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep cohort and run here, or find them there"
    )
    arguments = command.parse_args(words)
    if arguments.one:
        print(json.dumps(_one(*arguments.one)))
        return
    most = 50_000 if arguments.quick else arguments.candidates
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    found |= {"threads": torch.get_num_threads(), "searches": []}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not (folder / "run").exists():
            tell("now training a network")
            prepare(folder, num_epochs=1 if arguments.quick else 12)
        for number, (patient, num_candidates, precision) in enumerate(searches(most)):
            tell(f"now searching {num_candidates:,} designs for {patient} in {precision}")
            one = ("--one", str(folder), patient, str(num_candidates), precision, str(number))
            child = run_python("-m", "benchmarks", "design", *one)
            found["searches"].append(json.loads(child.output.splitlines()[-1]))
            tell(json.dumps(found["searches"][-1]))
    publish(output_path("design", arguments), found, report)


def searches(most: int) -> list[tuple[str, int, str]]:
    """Return who is searched for, how many designs, and in what precision."""
    first, *others = (f"P{NUM_KNOWN + number:03d}" for number in range(1, NUM_NEW + 1))
    small = [(patient, most // 50, "bf16") for patient in others]
    return [*small, (first, most // 50, "fp32"), (first, most // 10, "bf16"), (first, most, "bf16")]


def prepare(folder: Path, num_epochs: int) -> None:
    """Make cohort, new patients, encoder and a trained run."""
    rows = ("--rows-per-patient", str(ROWS_PER_PATIENT))
    run_python("-m", "jobs.make_cohort", "--out", str(folder / "cohort.parquet"), *rows)
    every = ("--patients", str(NUM_KNOWN + NUM_NEW), "--rows-per-patient", "24")
    run_python("-m", "jobs.make_cohort", "--out", str(folder / "patients.parquet"), *every)
    run_python("-m", "jobs.make_encoder", "--out", str(folder / "encoder"), "--size", "tiny")
    overrides = [
        f"data.path={folder / 'cohort.parquet'}",
        f"encoder.source={folder / 'encoder'}",
        "encoder.mode=frozen",
        f"cache.path={folder / 'cache.zarr'}",
        f"train.epochs={num_epochs}",
        "train.batch_rows=512",
        "reward.binary=probability",
        f"run.dir={folder / 'run'}",
    ]
    config = str(REPOSITORY / "configs" / "stage1_modality.yaml")
    words = [word for override in overrides for word in ("--set", override)]
    run_python("-m", "jobs.build_cache", "--config", config, *words)
    run_python("-m", "jobs.train", "--config", config, *words)


def _one(
    place: str, patient: str, num_candidates: str, precision: str, number: str
) -> dict[str, Any]:
    """Search for a new patient; return what it took, and what the top and random designs are
    worth.
    """
    folder = Path(place)
    request = DesignRequest(
        patient, patients=folder / "patients.parquet", num_candidates=int(num_candidates)
    )
    started, cpu = time.perf_counter(), time.process_time()
    out = folder / f"out_{number}"
    known = "bf16" if precision == "bf16" else "fp32"
    searched = design(folder / "run", request, out, precision=known)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
    peak = peak_rss_bytes()
    top = pl.read_csv(out / "top.csv")
    return {
        "patient": patient,
        "num_rows": searched.found.num_rows,
        "num_front": len(searched.found.front.number),
        "is_exact": searched.found.is_exact,
        "precision": precision,
        "seconds": seconds,
        "rows_per_s": searched.found.num_rows / seconds,
        "cpu_seconds": cpu,
        "rows_per_cpu_s": searched.found.num_rows / cpu,
        "peak_rss_bytes": peak,
        "worth": [
            {"patient": patient, "what": "top 10", **worth(top)},
            {"patient": patient, "what": f"{NUM_RANDOM:,} random", **worth(_random(folder, top))},
        ],
    }


def _random(folder: Path, top: pl.DataFrame) -> pl.DataFrame:
    """Return designs that nobody picked, with what the run says of them."""
    model = RewardModel.load(folder / "run")
    space = from_rows(model.run, read_rows(model.run))
    designs = space.draw(np.random.default_rng(0), NUM_RANDOM)
    frame = space.frame(top[:1].select(space.fixed), *designs)
    said = pl.concat(model.batches(frame, reward=True, coverage=0.9))
    return pl.concat([frame, said], how="horizontal")


def worth(designs: pl.DataFrame) -> dict[str, float]:
    """Return means of what was promised, and of what the cohort's own model says without noise."""
    true = _true(designs)
    reward = 0.5 * true["delta_EF_pct"] + 0.3 * true["is_optimal"] + 0.2 * true["safety"]
    reward = reward - 1.0 * (true["toxicity"] > 0.15) - 0.5 * (true["integrity"] < 0.8)
    ef = true["delta_EF_pct"]
    low, high = (designs[f"{side}_delta_EF_pct"].to_numpy() for side in ("lower", "upper"))
    return {
        "reward_promised": _mean(designs["reward"].to_numpy()),
        "reward_true": _mean(reward),
        "ef_promised": _mean(designs["predicted_delta_EF_pct"].to_numpy()),
        "ef_true": _mean(ef),
        "ef_inside": float(((ef >= low) & (ef <= high)).mean()),
    }


def _true(designs: pl.DataFrame) -> Columns:
    """Return the noise-free outcomes of designs."""
    names = (*PATIENT_COLUMNS, *FORMULATION_COLUMNS)
    rows = {name: designs[name].cast(pl.Float64).to_numpy() for name in names}
    chemistry = [chemistry_of(psmiles) for psmiles in designs["polymer_SMILES"]]
    for effect in ("bioactivity", "adhesion", "irritation"):
        rows[effect] = np.array([getattr(each, effect) for each in chemistry])
    return noise_free(latent_effects(rows), calibrate())


def _mean(values: Float[np.ndarray, " N"]) -> float:
    return float(values.mean())


def report(found: dict[str, Any]) -> Report:
    """Return speed and memory of the searches, and what was promised beside what is true."""
    made = found["searches"]
    most = max(made, key=lambda each: each["num_rows"])
    shown = [each for each in made if each["patient"] == most["patient"]]
    told = {each["patient"]: each for each in sorted(made, key=lambda each: each["num_rows"])}
    rows = [row for _, each in sorted(told.items()) for row in each["worth"]]
    tops = [each["worth"][0] for each in told.values()]
    gap = statistics.mean(row["ef_promised"] - row["ef_true"] for row in tops)
    panels = [
        Panel(
            f"top 10 of {most['num_rows']:,} designs",
            "EF gain [%]",
            {
                "promised": most["worth"][0]["ef_promised"],
                "without noise": most["worth"][0]["ef_true"],
            },
            ours=("promised",),
        )
    ]
    rate = most["rows_per_cpu_s"] * found["threads"]
    return Report(
        f"{most['num_rows']:,} designs for a new patient",
        (f"{found['threads']} threads; one run of each search.",),
        (
            Table(COLUMNS, shown),
            f"By its CPU seconds {found['threads']} free cores judge {rate:,.0f} designs a second,"
            f" {GOAL:,} in {GOAL / rate / 60:.1f} minutes.",
            f"The front of {most['num_rows']:,} has {most['num_front']:,} designs.",
            Table(WORTH, rows),
            f"Of the top designs {gap:.2f} points of ejection fraction more were promised than the"
            " cohort's own model gives.",
        ),
        panels,
    )
