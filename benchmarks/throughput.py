"""One optimizer step at full size: naive per-row encoding against encoding each distinct string once.

Each mode runs in a process of its own, on the same cohort, encoder, LoRA, precision and optimizer step. Before anything is timed, the gradients of the
modes that train the same weights are compared with the naive ones (dropout off, fp32); prefix trains fewer, and is compared in tests/fusionnet/test_step.py.
Naive steps of 8,192 rows would take up to half an hour each, so naive time is measured on two smaller steps and extended along the line through them;
everything else is measured on whole steps.

The bound is Amdahl's: f is the encoder's share of the naive step, r the ratio of encoder tokens, and no saving of tokens can give more than
1 / ((1 - f) + f / r).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.stamp import RESULTS, stamp
from embedcache.encoder import MAX_BATCH_TOKENS, length_batches
from embedcache.errors import UserError
from embedcache.store import Cache, open_cache
from fusionnet.assemble import Recipe, build_model, make_sources, observed_tasks
from fusionnet.batches import load_rows
from fusionnet.train.engine import World
from fusionnet.train.loop import make_trainer
from fusionnet.train.runlog import peak_rss_bytes, write_json
from fusionnet.train.step import optimizer_step
from jobs.experiment import Experiment, load_experiment

REPOSITORY = Path(__file__).parents[1]
BATCH_ROWS = 8192
NAIVE_ROWS = (32, 96)  # rows of the two naive steps, in micro-batches of the first
PADDED = 128  # tokens, as the specification pads
PREFIX_LAYER = 9
STAGE1_ROWS = 15 * 313_236  # epochs times train rows
MODES = {
    "naive_128": "every row encoded, padded to 128 tokens (as specified)",
    "naive_longest": "every row encoded, padded to the longest string",
    "per_microbatch": "torch.unique in each micro-batch of 1,024 rows",
    "per_step": "distinct strings once per optimizer step",
    "prefix": f"LoRA on layers {PREFIX_LAYER} and up, what enters them cached",
    "frozen": "no LoRA: vectors from the cache",
}
DROPOUT_OFF = ["model.dropout=0.0", "encoder.lora.dropout=0.0", *(f"tasks.{task}.head_dropout=0.0" for task in range(2))]


def main(words: list[str]) -> None:
    """Measure all modes and write benchmarks/results/throughput_<precision>.json, .md and .png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--quick", action="store_true", help="one timed step per mode instead of five")
    parser.add_argument("--json", type=Path, help="unset: benchmarks/results/throughput_<precision>.json")
    parser.add_argument("--worker", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker, arguments.precision, 1 if arguments.quick else 5)))
        return
    output = arguments.json or RESULTS / f"throughput_{arguments.precision}.json"
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        found: dict[str, Any] = {**stamp(), "precision": arguments.precision, "batch_rows": BATCH_ROWS, "gradient_error": gradient_errors(Path(folder))}
        found["modes"] = {mode: _in_own_process(mode, folder, arguments) for mode in MODES}
    _derive(found)
    write_json(output, found)
    text = as_markdown(found)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(found, output.with_suffix(".png"))
    print(text)


def _prepare(folder: Path) -> None:
    """Make cohort, stand-in encoder and cache: 60 patients of 240 rows, 10,080 of which train."""
    _run("-m", "jobs.make_cohort", "--out", str(folder / "cohort.parquet"), "--rows-per-patient", "240")
    _run("-m", "jobs.make_encoder", "--out", str(folder / "encoder"), "--size", "polybert")
    overrides = [word for override in _overrides(folder, "prefix", "fp32") for word in ("--set", override)]
    _run("-m", "jobs.build_cache", "--config", str(REPOSITORY / "configs" / "stage1.yaml"), *overrides)


def _overrides(folder: Path, mode: str, precision: str) -> list[str]:
    first_layer = PREFIX_LAYER if mode == "prefix" else 0
    known = mode if mode in ("per_microbatch", "per_step", "prefix", "frozen") else "naive"
    return [
        f"data.path={folder / 'cohort.parquet'}",
        f"encoder.source={folder / 'encoder'}",
        f"cache.path={folder / 'cache.zarr'}",
        f"encoder.mode={known}",
        f"encoder.lora.first_layer={first_layer}",
        f"train.precision={precision}",
    ]


def _load(folder: Path, mode: str, precision: str, extra: list[str]) -> tuple[Experiment, Cache, Recipe]:
    experiment = load_experiment(REPOSITORY / "configs" / "stage1.yaml", [*_overrides(folder, mode, precision), *extra])
    cache = open_cache(folder / "cache.zarr")
    recipe = Recipe(observed_tasks(experiment.tasks, cache.layout), (experiment.encoder,), experiment.model, experiment.loss, experiment.train)
    return experiment, cache, recipe


def gradient_errors(folder: Path, num_rows: int = 24) -> dict[str, float]:
    """Return |gradient - naive gradient| / |naive gradient| over all trainable weights, fp32, dropout off, for modes that train the same weights."""
    gradients: dict[str, Tensor] = {}
    for mode in ("naive_longest", "naive_128", "per_microbatch", "per_step"):
        _, cache, recipe = _load(folder, mode, "fp32", DROPOUT_OFF)
        model = build_model(recipe, cache.layout, cache.scaling).train()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)  # fresh adapters have B = 0, which would hide A's gradient
        source = make_sources(model, recipe, cache, pad_to=PADDED if mode == "naive_128" else None)[0]
        rows = load_rows(cache, "train").take(torch.arange(0, 6000, 6000 // num_rows)[:num_rows])
        source.begin_step(rows.string_id[:, 0], 2)
        for half in (slice(0, num_rows // 2), slice(num_rows // 2, num_rows)):
            part = rows.take(torch.arange(num_rows)[half])
            read = source.read(part.string_id[:, 0])
            loss = model([read.vectors], read.index.unsqueeze(1), part.numeric, part.category, part.targets, part.weight, rows.loss_denominators(), 0.5).total
            surrogate = source.surrogate(1.0)
            (loss if surrogate is None else loss + surrogate).backward()
        gradients[mode] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    naive = gradients.pop("naive_longest")
    errors = {mode: float((gradient - naive).norm() / naive.norm()) for mode, gradient in gradients.items()}
    wrong = {mode: error for mode, error in errors.items() if error > 1e-5}
    if wrong:
        raise AssertionError(f"gradients differ from naive per-row encoding: {wrong}; nothing was timed")
    return errors


def measure(mode: str, folder: str, precision: str, num_steps: int) -> dict[str, Any]:
    """Return the time of one optimizer step of BATCH_ROWS rows in this process, its phases, encoder tokens and peak memory."""
    if mode.startswith("naive"):
        few, many = (_time_steps(mode, folder, precision, rows, NAIVE_ROWS[0], 1 if num_steps == 1 else 2) for rows in NAIVE_ROWS)
        per_row = (statistics.median(many["seconds"]) - statistics.median(few["seconds"])) / (NAIVE_ROWS[1] - NAIVE_ROWS[0])
        step = statistics.median(few["seconds"]) + per_row * (BATCH_ROWS - NAIVE_ROWS[0])
        return {**_summary([step], BATCH_ROWS, many["tokens"] * BATCH_ROWS // NAIVE_ROWS[1]), "measured_rows": list(NAIVE_ROWS), "extrapolated": True}
    timed = _time_steps(mode, folder, precision, BATCH_ROWS, None, num_steps)
    return {**_summary(timed["seconds"], timed["rows"], timed["tokens"]), "phases_s": timed["phases"], "extrapolated": False}


def _time_steps(mode: str, folder: str, precision: str, batch_rows: int, micro_rows: int | None, num_steps: int) -> dict[str, Any]:
    experiment, cache, recipe = _load(Path(folder), mode, precision, [])
    recipe = replace(recipe, train=recipe.train.model_copy(update={"batch_rows": batch_rows, "micro_batch_rows": micro_rows}))
    trainer = make_trainer(recipe, experiment.optim, cache, WORLD.get(), pad_to=PADDED if mode == "naive_128" else None)
    trainer.model.train()
    rows = load_rows(cache, "train")
    shuffled = torch.randperm(rows.num_rows, generator=torch.Generator().manual_seed(0))[:batch_rows]
    batch, parts = rows.take(shuffled), trainer.plan.micro_batches(torch.arange(batch_rows), 0)
    clock = _Phases(trainer.engine, trainer.sources)
    seconds, phases = [], []
    for step in range(num_steps + 1):
        clock.reset()
        trainer.engine.set_learning_rates(trainer.schedule.rates(step))
        started = time.perf_counter()
        optimizer_step(trainer.engine, trainer.sources, batch, parts, 0, step)
        if step or mode.startswith("naive"):  # the first step of the others warms up; a naive one is long enough to need none
            seconds.append(time.perf_counter() - started)
            phases.append({**clock.seconds, "rest (fusion forward, loss)": seconds[-1] - sum(clock.seconds.values())})
        if len(seconds) == num_steps:
            break
    tokens = encoder_tokens(mode, cache, batch.string_id[:, 0], parts)
    return {"seconds": seconds, "rows": batch_rows, "tokens": tokens, "phases": {name: statistics.median(p[name] for p in phases) for name in phases[0]}}


class _World:
    """One process group for all trainers of this process."""

    def __init__(self) -> None:
        self._world: World | None = None

    def get(self) -> World:
        self._world = self._world or World()
        return self._world


WORLD = _World()


class _Phases:
    """Adds up the time inside encoding, backward passes and updates of a step."""

    def __init__(self, engine: Any, sources: list[Any]) -> None:
        self.seconds: dict[str, float] = {}
        engine.backward = self._timed("backward (fusion and encoder)", engine.backward)
        engine.step = self._timed("update", engine.step)
        for source in sources:
            source.begin_step = self._timed("encode distinct strings", source.begin_step)
            source.read = self._timed("read vectors", source.read)
        self.reset()

    def reset(self) -> None:
        self.seconds = dict.fromkeys(("encode distinct strings", "read vectors", "backward (fusion and encoder)", "update"), 0.0)

    def _timed(self, name: str, call: Any) -> Any:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **keywords)
            self.seconds[name] += time.perf_counter() - started
            return result

        return timed


def encoder_tokens(mode: str, cache: Cache, string_id: Tensor, parts: list[Tensor]) -> int:
    """Return the tokens, padding included, that the encoder reads in one step."""
    tokens = cache.strings(cache.layout.strings[0].name).tokens
    lengths = tokens.lengths

    def batched(ids: Tensor) -> int:
        distinct = lengths[torch.unique(ids)]
        return sum(len(batch) * int(distinct[batch].max()) for batch in length_batches(distinct, MAX_BATCH_TOKENS))

    match mode:
        case "naive_128":
            return PADDED * len(string_id)
        case "naive_longest":
            return sum(len(part) * int(lengths[string_id[part]].max()) for part in parts)
        case "per_microbatch":
            return sum(batched(string_id[part]) for part in parts)
        case "frozen":
            return 0
    return batched(string_id)


def _summary(seconds: list[float], rows: int, tokens: int) -> dict[str, Any]:
    step = statistics.median(seconds)
    return {
        "rows_per_s": rows / step,
        "step_s": step,
        "spread_s": max(seconds) - min(seconds),
        "encoder_tokens_per_step": tokens,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _derive(found: dict[str, Any]) -> None:
    """Add speed-ups, f, r and the bound to the measured modes."""
    modes = found["modes"]
    ours, frozen = modes["per_step"], modes["frozen"]
    found["speedup"] = {f"per_step_vs_{mode}": modes[mode]["step_s"] / ours["step_s"] for mode in MODES if mode != "per_step"}
    found["bound"] = {}
    for mode in ("naive_128", "naive_longest"):
        f = 1 - frozen["step_s"] / modes[mode]["step_s"]
        r = modes[mode]["encoder_tokens_per_step"] / ours["encoder_tokens_per_step"]
        bound = 1 / ((1 - f) + f / r)
        found["bound"][mode] = {"f": f, "r": r, "bound": bound, "share_reached": found["speedup"][f"per_step_vs_{mode}"] / bound}
    found["stage1_hours"] = {mode: STAGE1_ROWS / modes[mode]["rows_per_s"] / 3600 for mode in MODES}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    lines = [
        f"# One optimizer step of {found['batch_rows']:,} rows, 21 distinct strings, polyBERT size, {found['precision']}",
        "",
        f"`{found['command']}` at {found['commit']}, {found['date']}: {found['hardware']['processor']}, {found['hardware']['cores']} cores,",
        f"torch {found['versions']['torch']}. Gradients against naive (fp32, dropout off): "
        + ", ".join(f"{mode} {error:.1e}" for mode, error in found["gradient_error"].items())
        + ".",
        "",
        "| mode | rows/s | step, s | per_step is faster by | encoder tokens | peak GiB | 15 epochs of Stage 1, h |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, what in MODES.items():
        result = found["modes"][mode]
        faster = found["speedup"].get(f"per_step_vs_{mode}", 1.0)
        note = f", extended from steps of {result['measured_rows'][0]} and {result['measured_rows'][1]} rows" if result["extrapolated"] else ""
        lines.append(
            f"| {mode}: {what}{note} | {result['rows_per_s']:,.1f} | {result['step_s']:,.2f} | {faster:.2f} x | {result['encoder_tokens_per_step']:,} "
            f"| {result['peak_rss_bytes'] / 2**30:.1f} | {found['stage1_hours'][mode]:,.2f} |"
        )
    for mode, bound in found["bound"].items():
        lines += [
            "",
            f"Against {mode}: f = {bound['f']:.5f}, r = {bound['r']:,.0f}, Amdahl bound {bound['bound']:,.0f} x, reached {bound['share_reached']:.0%} of it.",
        ]
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["modes"]["per_step"]["phases_s"].items())
    return "\n".join([*lines, "", f"Phases of a per_step step: {phases}."]) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw rows per second of each mode."""
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    modes = list(MODES)[::-1]
    rates = [found["modes"][mode]["rows_per_s"] for mode in modes]
    bars = axes.barh(modes, rates, color=["#c8641e" if mode == "per_step" else "#9aa9b8" for mode in modes])
    axes.bar_label(bars, [f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 2, max(rates) * 4)
    axes.set_xlabel(f"rows per second (log scale), {found['precision']}, {found['hardware']['cores']} cores")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _in_own_process(mode: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    words = ["throughput", "--worker", mode, folder, "--precision", arguments.precision, *(["--quick"] if arguments.quick else [])]
    print(f"{mode}: {MODES[mode]}", file=sys.stderr, flush=True)
    done = _run("-m", "benchmarks", *words)
    return json.loads(done.strip().splitlines()[-1])


def _run(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words[:4])} failed:\n{done.stderr[-3000:]}")
    return done.stdout
