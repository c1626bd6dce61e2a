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
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, spread, timed
from embedcache.cache.reader import open_cache
from embedcache.errors import UserError
from fusionnet import RewardModel
from fusionnet.assemble import Recipe, build_model, observed_tasks
from fusionnet.config import ModelConfig
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.model.constant import ConstantLinear
from fusionnet.model.evaluator import CPU_BLOCK_ROWS
from fusionnet.model.forward import forward_rows
from fusionnet.model.network import FusionNetwork
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.train.checkpoint import save_checkpoint
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.trained.vectors import vectors_of_all_strings

REPOSITORY = Path(__file__).parents[2]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_ROWS = 480_000  # of the larger of two files; the smaller has an eighth


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/inference.json and .md."""
    command = parser("inference", __doc__ or "")
    command.add_argument(
        "--peak", nargs=3, metavar=("RUN", "FILE", "PRECISION"), help=argparse.SUPPRESS
    )
    arguments = command.parse_args(words)
    if arguments.peak:
        print(json.dumps(_peak(*arguments.peak)))
        return
    num_rows, num_runs = (8_192, 3) if arguments.quick else (32_768, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, rows_per_patient=MEMORY_ROWS // 60)
        found: dict[str, Any] = {
            **stamp(),
            "quick": arguments.quick,
            "num_rows": num_rows,
            "num_runs": num_runs,
            "threads": torch.get_num_threads(),
            **sizes(folder),
        }
        # what this machine has instructions for
        own = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
        found["precisions"] = {
            precision: measure(folder, precision, num_rows, num_runs)
            for precision in ((own,) if arguments.quick else PRECISIONS)
        }
        found["peak_rss_bytes"], found["peak_precision"] = peaks(folder, own), own
    publish(output_path("inference", arguments), found, as_markdown, draw)


def prepare(folder: Path, rows_per_patient: int) -> None:
    """Make cohort, stand-in encoder and cache, and a run folder with fresh weights as training
    would leave it.
    """
    run_module(
        "jobs.make_cohort",
        "--out",
        str(folder / "cohort.parquet"),
        "--rows-per-patient",
        str(rows_per_patient),
    )
    pl.read_parquet(folder / "cohort.parquet").sample(
        fraction=1.0, shuffle=True, seed=0
    ).write_parquet(folder / "cohort.parquet", row_group_size=8192)
    run_module("jobs.make_encoder", "--out", str(folder / "encoder"), "--size", "polybert")
    experiment = _experiment(folder)
    overrides = [word for override in _overrides(folder) for word in ("--set", override)]
    run_module(
        "jobs.build_cache", "--config", str(REPOSITORY / "configs" / "stage1.yaml"), *overrides
    )
    cache = open_cache(folder / "cache.zarr")
    recipe = Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        (experiment.encoder,),
        experiment.model,
        experiment.loss,
        experiment.train,
    )
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


def measure(folder: Path, precision: str, num_rows: int, num_runs: int) -> dict[str, Any]:
    """Return rows per second of forward_rows and reward, interleaved with the roofline, and how far
    the evaluator is from the network's fp32 outputs.
    """
    cache, frame = (
        open_cache(folder / "cache.zarr"),
        pl.read_parquet(folder / "cohort.parquet").head(num_rows),
    )
    model = RewardModel.load(folder / "run", precision=precision)
    run = model.run
    rows = load_rows(cache, "train").take(torch.arange(num_rows))
    vectors = [
        vectors_of_all_strings(run, spec.name, cache.strings(spec.name).text)
        for spec in cache.layout.strings
    ]
    off = _off(RewardModel.load(folder / "run"), vectors, rows.take(torch.arange(2048)), run.model)
    products = roofline(run.recipe.model, PRECISIONS[precision])
    calls: dict[str, Callable[[], object]] = {
        "forward_rows": lambda: forward_rows(
            run.model, vectors, rows, run.recipe.train.eval_batch_rows
        ),
        "network, batch by batch": lambda: _plainly(run.model, vectors, rows),
        "reward": lambda: model.reward(frame),
    }
    calls["products"] = products.run
    for call in calls.values():
        call()
    seconds = interleaved({name: partial(timed, call) for name, call in calls.items()}, num_runs)
    gflops = [products.flop / each / 1e9 for each in seconds.pop("products")]
    bound = statistics.median(gflops) * 1e9 / flop_per_row(run.model.network, run.recipe)
    found = {
        name: {"rows_per_s": spread([num_rows / each for each in times])}
        for name, times in seconds.items()
    }
    for result in found.values():
        result["share_of_roofline"] = result["rows_per_s"]["median"] / bound
    return {
        "worst_difference_in_spreads": off,
        "roofline_gflop_per_s": spread(gflops),
        "roofline_rows_per_s": bound,
        "calls": found,
    }


def _off(
    exact: RewardModel, vectors: list[torch.Tensor], rows: RowTable, model: TrainableModel
) -> float:
    """Return the largest difference from the network's own fp32 outputs, in standard deviations of
    each output; refuse to time a wrong evaluator.
    """
    with torch.no_grad():
        wanted = exact.run.model.outputs(vectors, rows.string_id, rows.numeric, rows.category)
    off = float(
        (
            (forward_rows(model, vectors, rows, len(rows.weight)) - wanted).abs().amax(0)
            / wanted.std(0)
        ).max()
    )
    limit = 1e-4 if model.product_dtype == torch.float32 else 0.1
    if off > limit:
        raise AssertionError(
            f"the evaluator is off by {off:.2g} standard deviations, at most {limit} were expected;"
            " nothing was timed"
        )
    return off


@torch.no_grad()
def _plainly(model: TrainableModel, vectors: list[torch.Tensor], rows: RowTable) -> None:
    """Evaluate rows by the network itself, which projects the strings in every batch and casts the
    weights in every batch.
    """
    for start in range(0, rows.num_rows, CPU_BLOCK_ROWS):
        part = slice(start, start + CPU_BLOCK_ROWS)
        model.outputs(vectors, rows.string_id[part], rows.numeric[part], rows.category[part])


class Products(NamedTuple):
    """Matrix products to time, and their operations."""

    run: Callable[[], object]
    flop: int


def roofline(model: ModelConfig, dtype: torch.dtype, num_times: int = 4) -> Products:
    """Return the feed-forward network's two products, on a block of rows, some times."""
    rows, (narrow, wide) = CPU_BLOCK_ROWS, (model.fusion_width, model.feedforward)
    x, h = torch.randn(rows, narrow, dtype=dtype), torch.randn(rows, wide, dtype=dtype)
    up, down = (
        ConstantLinear(torch.randn(wide, narrow, dtype=dtype), None),
        ConstantLinear(torch.randn(narrow, wide, dtype=dtype), None),
    )
    return Products(
        lambda: [(up(x), down(h)) for _ in range(num_times)],
        num_times * 2 * 2 * rows * narrow * wide,
    )


def flop_per_row(network: FusionNetwork, recipe: Recipe) -> int:
    """Return the operations in the evaluator's matrix products for one row, strings and categories
    not counted: 2 for each weight that a row meets.
    """
    model, num_features = recipe.model, len(network.feature_order)
    numeric = (
        num_features * model.numeric_hidden
        + model.numeric_hidden * model.numeric_width
        + model.numeric_width * model.fusion_width
    )
    layers = (
        model.num_layers * 2 * model.fusion_width * model.feedforward
        + max(0, model.num_layers - 1) * model.fusion_width**2
    )
    heads = sum(
        wide * narrow
        for task in recipe.tasks
        for wide, narrow in pairwise((model.fusion_width, *task.head, 1))
    )
    skip = num_features * len(recipe.tasks) if model.linear_skip else 0
    return 2 * (numeric + layers + heads + skip)


def sizes(folder: Path) -> dict[str, Any]:
    """Return parameters of the network and operations per row: as specified (queries and keys too),
    and as evaluated.
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
    """Return the peak memory of a process that rewards a Parquet file, and of one that rewards 8
    times as many rows.
    """
    whole = pl.scan_parquet(folder / "cohort.parquet")
    found = {}
    for times in (1, 8):
        file = folder / f"rows_{times}.parquet"
        whole.head(times * MEMORY_ROWS // 8).collect().write_parquet(file, row_group_size=8192)
        found[f"{times}x"] = json.loads(
            run_module(
                "benchmarks", "inference", "--peak", str(folder / "run"), str(file), precision
            )
        )
    return found


def _peak(run: str, file: str, precision: str) -> int:
    for _ in RewardModel.load(run, precision=precision).batches(file, reward=True):
        pass
    return peak_rss_bytes()


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    peaks_mib = {times: peak / 2**20 for times, peak in found["peak_rss_bytes"].items()}
    lines = [
        f"# Evaluation and reward at full size, {found['num_rows']:,} rows",
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['hardware']['cores']} cores,"
        ),
        (
            f"{found['threads']} threads, torch {found['versions']['torch']}; median of"
            f" {found['num_runs']} runs in rounds of all calls (20 to 80 %)."
        ),
        "",
        (
            f"{found['parameters']:,} parameters. As specified a row takes"
            f" {found['flop_per_row_specified'] / 1e6:.1f} MFLOP in matrix products, here"
            f" {found['flop_per_row'] / 1e6:.1f}: no queries and keys, value and output projection"
            " one matrix (the first in the input projection), strings and categories from tables."
        ),
        "",
        "| precision | call | rows/s | 20 to 80 % | share of roofline |",
        "|---|---|---|---|---|",
    ]
    for precision, result in found["precisions"].items():
        for name, call in result["calls"].items():
            rates = "{median:,.0f} | {p20:,.0f} to {p80:,.0f}".format(**call["rows_per_s"])
            lines.append(f"| {precision} | {name} | {rates} | {call['share_of_roofline']:.0%} |")
    for precision, result in found["precisions"].items():
        lines += [
            "",
            (
                f"{precision}: the products alone reach"
                f" {result['roofline_gflop_per_s']['median']:,.0f} GFLOP/s, hence at most"
                f" {result['roofline_rows_per_s']:,.0f} rows/s; outputs are within"
                f" {result['worst_difference_in_spreads']:.1g} standard deviations of the network's"
                " own in fp32."
            ),
        ]
    few, many = (
        f"{peaks_mib[times]:,.0f} MiB for {rows:,}"
        for times, rows in (("1x", MEMORY_ROWS // 8), ("8x", MEMORY_ROWS))
    )
    return (
        "\n".join([*lines, "", f"Peak memory, {found['peak_precision']}: {few} rows, {many}."])
        + "\n"
    )


def _overrides(folder: Path) -> list[str]:
    return [
        f"data.path={folder / 'cohort.parquet'}",
        f"encoder.source={folder / 'encoder'}",
        f"cache.path={folder / 'cache.zarr'}",
        "encoder.mode=frozen",
        "train.precision=fp32",
        f"run.dir={folder / 'run'}",
    ]


def _experiment(folder: Path) -> Experiment:
    return load_experiment(REPOSITORY / "configs" / "stage1.yaml", _overrides(folder))


def run_module(*words: str) -> str:
    """Return what a command of this project prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(words[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the rates of all calls beside what the matrix products alone allow."""
    panels = [
        Panel(
            f"{precision}, {found['threads']} threads",
            "rows per second (lines: 20 to 80 % of the runs)",
            {name: tuple(call["rows_per_s"].values()) for name, call in result["calls"].items()},
            {"matrix products alone": result["roofline_rows_per_s"]},
        )
        for precision, result in found["precisions"].items()
    ]
    draw_bars(path, panels, ours=("forward_rows", "reward"))
