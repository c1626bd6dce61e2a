"""Evaluation and reward at full size: rows per second beside what this machine's matrix products
allow, and peak memory at 1 and 8 times the rows.

The network is the specification's (fresh weights: speed does not depend on them), the rows are the
reference cohort's. Before anything is timed, the evaluator's outputs are compared with the
network's own. `reward` takes a polars frame, checks it, and returns rewards; `forward_rows` starts
at tensors.

The roofline is measured in the same process, between the timed runs: the network's largest products
alone, in the same dtype and on as many rows at once. A row needs `flop_per_row` operations in
matrix products, so no arrangement of them evaluates more rows per second than roofline /
flop_per_row. `--quick` takes only the precision that the machine has instructions for.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks.harness.cells import Column, Table, mib, named, number, with_spread
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.timing import interleaved, spread, timed
from benchmarks.harness.workers import run_python
from benchmarks.studies.roofline import flop_per_row, roofline
from embedcache.cache.reader import open_cache
from fusionnet import RewardModel
from fusionnet.assemble import build_model
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.model.evaluator import CPU_BLOCK_ROWS
from fusionnet.model.forward import forward_rows
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.runfolder.listing import begin_listing, new_id
from fusionnet.train.checkpoint import save_checkpoint
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.recipes import recipe_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROW_GROUP = 8192
MEMORY_ROWS = 480_000  # of the larger of two files; the smaller has an eighth

COLUMNS = (
    Column("precision", "precision"),
    Column("call", "name"),
    Column("rows/s (20 to 80 %)", "rows_per_s", with_spread),
    Column("share of roofline", "share_of_roofline", ".0%"),
)


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/inference.*."""
    command = parser("inference", __doc__ or "")
    command.add_argument(
        "--peak", nargs=3, metavar=("RUN", "FILE", "PRECISION"), help=argparse.SUPPRESS
    )
    arguments = command.parse_args(words)
    if arguments.peak:
        print(json.dumps(_peak(*arguments.peak)))
        return
    num_rows, num_runs = (8_192, 3) if arguments.quick else (32_768, 7)
    # what this machine has instructions for
    own = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick, "num_rows": num_rows}
    found |= {"num_runs": num_runs, "threads": torch.get_num_threads(), "precisions": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell(f"now writing {MEMORY_ROWS:,} rows, their cache and a run folder")
        prepare(folder, rows_per_patient=MEMORY_ROWS // 60)
        found |= sizes(folder)
        for precision in (own,) if arguments.quick else PRECISIONS:
            tell(f"now measuring {precision}")
            found["precisions"][precision] = measure(folder, precision, num_rows, num_runs)
        tell("now measuring peak memory")
        found |= {"peak_rss_bytes": peaks(folder, own), "peak_precision": own}
    publish(output_path("inference", arguments), found, report)


def prepare(folder: Path, rows_per_patient: int) -> None:
    """Make cohort, encoder and cache, and a run folder with fresh weights as training leaves it."""
    cohort = folder / "cohort.parquet"
    rows = ("--rows-per-patient", str(rows_per_patient))
    run_python("-m", "jobs.make_cohort", "--out", str(cohort), *rows)
    shuffled = pl.read_parquet(cohort).sample(fraction=1.0, shuffle=True, seed=0)
    shuffled.write_parquet(cohort, row_group_size=ROW_GROUP)
    encoder = ("--out", str(folder / "encoder"), "--size", "polybert")
    run_python("-m", "jobs.make_encoder", *encoder)
    overrides = [
        f"data.path={cohort}",
        f"encoder.source={folder / 'encoder'}",
        f"cache.path={folder / 'cache.zarr'}",
        "encoder.mode=frozen",
        "train.precision=fp32",
        f"run.dir={folder / 'run'}",
    ]
    config = REPOSITORY / "configs" / "stage1.yaml"
    words = [word for override in overrides for word in ("--set", override)]
    run_python("-m", "jobs.build_cache", "--config", str(config), *words)
    write_run(folder / "run", load_experiment(config, overrides))


def write_run(run: Path, experiment: Experiment) -> None:
    """Write the folder of a run with fresh weights, as a first epoch of training leaves it."""
    cache = open_cache(experiment.cache.path)
    model = build_model(recipe_of(experiment, cache), cache.layout, cache.scaling)
    strings = {spec.name: cache.strings(spec.name) for spec in cache.layout.strings}
    run_id = new_id()
    content = {
        "run_id": run_id,
        "epoch": 1,
        "step": 0,
        "model_state_dict": model.trainable_state(),
        "optimizer_state_dict": {},
        "records": [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0}],
        "best_val_loss": 1.0,
        "epoch_losses": None,
        "epoch_seconds": 0.0,
        "gradient_norm": 0.0,
        "order": "resident",
        "config": experiment.model_dump(mode="json"),
        "layout": cache.layout.model_dump_json(),
        "scaling": cache.scaling.to_json(),
        "strings": {name: own.text for name, own in strings.items()},
        "vectors": {name: own.embeddings for name, own in strings.items()},
        "identity": dict(cache.identity.entries),
    }
    run.mkdir()
    begin_listing(run, experiment.run.name, run_id)
    save_checkpoint(run / "stage1_best.pt", content)
    (run / "stage1_config.yaml").write_text(experiment.to_yaml(), encoding="utf-8")


def measure(folder: Path, precision: str, num_rows: int, num_runs: int) -> dict[str, Any]:
    """Return rows per second of forward_rows and reward, interleaved with the roofline.

    Also how far the evaluator is from the network's fp32 outputs.
    """
    cache = open_cache(folder / "cache.zarr")
    frame = pl.read_parquet(folder / "cohort.parquet").head(num_rows)
    reward = RewardModel.load(folder / "run", precision=precision)
    run = reward.run
    rows = load_rows(cache, "train").take(torch.arange(num_rows))
    texts = {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings}
    vectors = [vectors_of_all_strings(run, name, text) for name, text in texts.items()]
    exact = RewardModel.load(folder / "run").run.model
    off = _off(exact, vectors, rows.take(torch.arange(2048)), run.model)
    products = roofline(run.recipe.model, PRECISIONS[precision])
    block = run.recipe.train.eval_batch_rows
    calls: dict[str, Callable[[], object]] = {
        "forward_rows": lambda: forward_rows(run.model, vectors, rows, block),
        "network, batch by batch": lambda: _plainly(run.model, vectors, rows),
        "reward": lambda: reward.reward(frame),
        "products": products.run,
    }
    for call in calls.values():
        call()
    turns = {name: partial(timed, call) for name, call in calls.items()}
    seconds = interleaved(turns, num_runs, tell)
    gflops = [products.flop / each / 1e9 for each in seconds.pop("products")]
    bound = statistics.median(gflops) * 1e9 / flop_per_row(run.model.network, run.recipe)
    found = {}
    for name, own in seconds.items():
        rates = spread([num_rows / each for each in own])
        found[name] = {"rows_per_s": rates, "share_of_roofline": rates["median"] / bound}
    return {
        "worst_difference_in_spreads": off,
        "roofline_gflop_per_s": spread(gflops),
        "roofline_rows_per_s": bound,
        "calls": found,
    }


def _off(
    exact: TrainableModel, vectors: list[torch.Tensor], rows: RowTable, model: TrainableModel
) -> float:
    """Return the largest difference from the network's fp32 outputs, in their standard deviations.

    Raises AssertionError where the evaluator is wrong: nothing is timed then.
    """
    with torch.no_grad():
        wanted = exact.outputs(vectors, rows.inputs)
    found = forward_rows(model, vectors, rows, len(rows.weight))
    off = float(((found - wanted).abs().amax(0) / wanted.std(0)).max())
    limit = 1e-4 if model.product_dtype == torch.float32 else 0.1
    if off > limit:
        raise AssertionError(
            f"the evaluator is off by {off:.2g} standard deviations, at most {limit} were expected;"
            " nothing was timed"
        )
    return off


@torch.no_grad()
def _plainly(model: TrainableModel, vectors: list[torch.Tensor], rows: RowTable) -> None:
    """Evaluate rows by the network itself.

    It projects the strings and casts the weights in every batch.
    """
    for start in range(0, rows.num_rows, CPU_BLOCK_ROWS):
        part = slice(start, start + CPU_BLOCK_ROWS)
        model.outputs(vectors, rows.inputs.take(part))


def sizes(folder: Path) -> dict[str, Any]:
    """Return parameters of the network, and operations per row as specified and as evaluated.

    Specified are queries and keys too.
    """
    run = RewardModel.load(folder / "run").run
    width, layers = run.recipe.model.fusion_width, run.recipe.model.num_layers
    parameters = sum(parameter.numel() for parameter in run.model.network.parameters())
    return {
        "parameters": parameters,
        "flop_per_row_specified": 2 * (parameters + layers * 2 * width * (width + 1)),
        "flop_per_row": flop_per_row(run.model.network, run.recipe),
    }


def peaks(folder: Path, precision: str) -> dict[str, int]:
    """Return the peak bytes of a process that rewards a Parquet file, and one 8 times as long."""
    whole = pl.scan_parquet(folder / "cohort.parquet")
    found = {}
    for times in (1, 8):
        file = folder / f"rows_{times}.parquet"
        rows = whole.head(times * MEMORY_ROWS // 8).collect()
        rows.write_parquet(file, row_group_size=ROW_GROUP)
        words = ("--peak", str(folder / "run"), str(file), precision)
        output = run_python("-m", "benchmarks", "inference", *words).output
        found[f"{times}x"] = json.loads(output)
    return found


def _peak(run: str, file: str, precision: str) -> int:
    for _ in RewardModel.load(run, precision=precision).batches(file, reward=True):
        pass
    return peak_rss_bytes()


def report(found: dict[str, Any]) -> Report:
    """Return the rates of all calls beside what the matrix products alone allow."""
    rows = [
        {"precision": precision, **call}
        for precision, result in found["precisions"].items()
        for call in named(result["calls"])
    ]
    peaks_mib = ", ".join(
        f"{mib(found['peak_rss_bytes'][times])} MiB for {num_rows:,} rows"
        for times, num_rows in (("1x", MEMORY_ROWS // 8), ("8x", MEMORY_ROWS))
    )
    panels = [
        Panel(
            f"{precision}, {found['threads']} threads",
            "rows per second (lines: 20 to 80 % of the runs)",
            {name: tuple(call["rows_per_s"].values()) for name, call in result["calls"].items()},
            {"matrix products alone": result["roofline_rows_per_s"]},
            ours=("forward_rows", "reward"),
        )
        for precision, result in found["precisions"].items()
    ]
    how = (
        f"{found['threads']} threads; median of {found['num_runs']} runs in rounds of all calls (20"
        " to 80 %)."
    )
    return Report(
        f"Evaluation and reward at full size, {found['num_rows']:,} rows",
        (how,),
        (
            _operations(found),
            Table(COLUMNS, rows),
            *(_roofline_words(*entry) for entry in found["precisions"].items()),
            f"Peak memory, {found['peak_precision']}: {peaks_mib}.",
        ),
        panels,
    )


def _operations(found: dict[str, Any]) -> str:
    """Return what a row takes, as specified and as evaluated."""
    specified, ours = (found[key] / 1e6 for key in ("flop_per_row_specified", "flop_per_row"))
    return (
        f"{found['parameters']:,} parameters. As specified a row takes {specified:.1f} MFLOP in"
        f" matrix products, here {ours:.1f}: no queries and keys, value and output projection one"
        " matrix (the first in the input projection), strings and categories from tables."
    )


def _roofline_words(precision: str, result: dict[str, Any]) -> str:
    """Return what the matrix products alone reach in a precision."""
    return (
        f"{precision}: the products alone reach"
        f" {number(result['roofline_gflop_per_s']['median'])} GFLOP/s, hence at most"
        f" {result['roofline_rows_per_s']:,.0f} rows/s; outputs are within"
        f" {result['worst_difference_in_spreads']:.1g} standard deviations of the network's own in"
        " fp32."
    )
