"""How training grows: a cost model fitted on measured steps, checked on steps that the fit never
saw, and then carried to where nobody has measured.

Measured: steps on this machine, with rows, distinct strings, their lengths, micro-batches and mode
all varied. A third of them is held out; the errors on those are printed, and are what the fitted
part can be trusted to. Projected: everything about GPUs. Its rates are assumptions, stated in one
table (`projection.GPU`); it says where the limit moves, not what a cluster will show.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.costmodel import Architecture, check, features
from benchmarks.harness.cells import Column, Table, number
from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.pictures import COLORS, MARKERS
from benchmarks.harness.publish import Report, machine, output_path, parser, publish, tell
from benchmarks.harness.setting import PREFIX_LAYERS, SMALL_NETWORK, made_strings, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import MODES, Stepper, batch_of
from benchmarks.harness.timing import interleaved, spread
from benchmarks.projection import GPU, full_size, projections, table_sizes
from fusionnet.assemble import count_trainable
from fusionnet.rows.tensors import RowTable


@dataclass(frozen=True)
class Size:
    """Which steps are measured."""

    encoder: str
    rows: tuple[int, ...]
    naive_rows: tuple[int, ...]
    distinct: tuple[int, ...]
    micro_batches: tuple[int, ...]
    rounds: int
    overrides: tuple[str, ...] = ()


FULL = Size("polybert", (1024, 4096), (16, 48), (4, 24), (2, 8), 3)
QUICK = Size("middle", (128, 256, 512), (16, 32, 64), (5, 40), (2, 4), 2, SMALL_NETWORK)
MEASURED = ("naive_128", "naive_longest", "per_microbatch", "per_step", "prefix", "frozen")
SHOWN_GPUS = 64  # in the picture


class Case(NamedTuple):
    """One kind of step that is measured."""

    stepper: Stepper
    batch: RowTable
    mode: str
    micro_batches: int

    def turn(self) -> dict[str, Any]:
        """Take a step; return its seconds and what was counted."""
        seconds = self.stepper.step(self.batch)
        read = (self.stepper.tokens, self.stepper.token_pairs, self.stepper.passes)
        return {"seconds": seconds, "read": read}


def main(words: list[str]) -> None:
    """Measure, fit, check, project, and write benchmarks/results/scaling.json, .md and .png."""
    options = parser("scaling", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "precision": arguments.precision,
        "encoder": size.encoder,
    }
    with tempfile.TemporaryDirectory() as folder:
        architecture, cases = measure(Path(folder), size, arguments.precision)
    found |= {"architecture": asdict(architecture), **check(cases)}
    found["assumed"] = {name: asdict(assumption) for name, assumption in GPU.items()}
    found["projected"] = projections(full_size(architecture))
    publish(output_path("scaling", arguments), found, report)


def measure(folder: Path, size: Size, precision: str) -> tuple[Architecture, list[dict[str, Any]]]:
    """Return the architecture, and per step what was counted and how long it took."""
    tell("now making the setting and comparing gradients")
    strings = [
        *made_strings(size.distinct[-1], 1, (3, 8)),
        *made_strings(size.distinct[-1], 2, (16, 24)),
    ]
    make_setting(folder, size.encoder, 24, strings, size.overrides)
    gradient_errors(folder, overrides=size.overrides)
    cases: dict[str, Case] = {}
    for mode, micro_batches in product(MEASURED, size.micro_batches):
        tell(f"now taking a first step of {mode}, {micro_batches} micro-batches")
        stepper = Stepper(folder, mode, precision, micro_batches, 1, size.overrides)
        fresh = _cases(stepper, size, mode, micro_batches)
        next(reversed(fresh.values())).turn()
        cases |= fresh
    turns = {name: case.turn for name, case in cases.items()}
    measured = interleaved(turns, size.rounds, tell)
    # of the first mode, which adapts all layers
    architecture = architecture_of(next(iter(cases.values())).stepper)
    first = PREFIX_LAYERS[size.encoder]
    return architecture, [
        _counted(name, case, measured[name], first, architecture) for name, case in cases.items()
    ]


def _cases(stepper: Stepper, size: Size, mode: str, micro_batches: int) -> dict[str, Case]:
    """Return a stepper's steps by name; lengths, numbers of strings and rows vary independently."""
    order = stepper.cache.strings("polymer").tokens.lengths.argsort()
    halves = {"short": order[: len(order) // 2], "long": order[len(order) // 2 :]}
    row_counts = size.naive_rows if MODES[mode].is_naive else size.rows
    distinct_counts = size.distinct[:1] if mode == "frozen" else size.distinct
    cases = {}
    for index, (rows, distinct) in enumerate(product(row_counts, distinct_counts)):
        kind = ("short", "long")[(index + index // len(size.distinct)) % 2]
        chosen = halves[kind][:distinct]
        drawn = np.random.default_rng(index).integers(0, len(chosen), rows)
        batch = batch_of(stepper.cache, rows, chosen[torch.from_numpy(drawn)])
        name = f"{mode} {rows} rows, {distinct} {kind} strings, {micro_batches} micro-batches"
        cases[name] = Case(stepper, batch, mode, micro_batches)
    return cases


def _counted(
    name: str, case: Case, turns: list[dict[str, Any]], first: int, architecture: Architecture
) -> dict[str, Any]:
    """Return a case's work and seconds; prefix mode runs the encoder's layers from `first` on."""
    layers = architecture.layers - (first if case.mode == "prefix" else 0)
    rows, read = case.batch.num_rows, turns[0]["read"]
    work = features(architecture, rows, *read, case.micro_batches, layers)
    seconds = spread([turn["seconds"] for turn in turns])
    return {"name": name, "mode": case.mode, "work": work, "seconds": seconds}


def architecture_of(stepper: Stepper) -> Architecture:
    """Return the sizes of the stepper's encoder and fusion network."""
    (encoder,) = stepper.trainer.model.encoders.values()
    config = encoder.model.config
    network = sum(parameter.numel() for parameter in stepper.trainer.model.network.parameters())
    return Architecture(
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        network,
        count_trainable(stepper.trainer.model),
    )


def report(found: dict[str, Any]) -> Report:
    """Return the fit, its check, the assumptions and the projections."""
    of_rates = (
        Column("work", lambda row: row[0]),
        Column("seconds per unit", lambda row: row[1], ".3g"),
        Column("that is", lambda row: _per_second(*row)),
    )
    of_steps = (
        Column("held-out step", "name"),
        Column("measured, s", "seconds.median"),
        Column("predicted, s", lambda row: row["seconds"]["median"] * (1 + row["error"])),
        Column("error", "error", "+.1%"),
    )
    of_assumed = (
        Column("what", lambda row: row[0]),
        Column("value", lambda row: row[1]["value"], "g"),
        Column("unit", lambda row: row[1]["unit"]),
        Column("source", lambda row: row[1]["source"]),
    )
    held_out = [case for case in found["cases"] if case["held_out"]]
    blocks: list[str | Table] = [
        "## Measured here, and checked",
        "Seconds per unit of counted work, fitted on two thirds of the measured steps:",
        Table(of_rates, found["rates"].items()),
        _errors(found, len(held_out)),
        Table(of_steps, held_out),
        "## Projected, not measured",
        "What is assumed of a GPU:",
        Table(of_assumed, found["assumed"].items()),
        "Training of 15 epochs in hours, once per step / per row (what limits the step): rows down,"
        " distinct strings across.",
    ]
    return Report(
        f"Cost model of a step, {found['encoder']} size, {found['precision']}",
        (),
        blocks + _projected(found["projected"]),
        (partial(_draw_fit, found), partial(_draw_projected, found["projected"])),
        size=(10.5, 4.0),
    )


def _per_second(term: str, rate: float) -> str:
    if rate == 0:
        return "not seen in these steps"
    return f"{1e-9 / rate:,.1f} GFLOP/s" if term.endswith("FLOP") else f"{1e3 * rate:,.1f} ms each"


def _errors(found: dict[str, Any], num_held_out: int) -> str:
    """Return how far off the predictions are."""
    held, fitted = found["held_out_error"], found["fitted_error"]
    return (
        f"Error of the prediction on {num_held_out} steps that the fit never saw: median"
        f" {held['median']:.1%}, largest {held['largest']:.1%} (on the fitted ones"
        f" {fitted['median']:.1%} and {fitted['largest']:.1%}; spread of repeated steps"
        f" {found['noise']:.1%})."
    )


def _projected(projected: list[dict[str, Any]]) -> list[str | Table]:
    """Return a table of rows and strings for each number of GPUs."""
    by_size = {(entry["rows"], entry["strings"], entry["gpus"]): entry for entry in projected}
    rows, strings, gpus = table_sizes()

    def hours(num_strings: float, num_gpus: int) -> Callable[[float], str]:
        return lambda num_rows: _hours(by_size[num_rows, num_strings, num_gpus])

    blocks: list[str | Table] = []
    for num_gpus in gpus:
        columns = [Column("rows", lambda num_rows: num_rows, ".0e")]
        columns += [Column(f"{num:,.0f} strings", hours(num, num_gpus)) for num in strings]
        blocks += [f"### {num_gpus:,} GPU{'s' * (num_gpus > 1)}", Table(columns, rows)]
    return blocks


def _hours(entry: dict[str, Any]) -> str:
    ours, naive = entry["ours"], entry["naive"]
    return (
        f"{number(ours['hours'])} ({ours['limit']}) / {number(naive['hours'])} ({naive['limit']}):"
        f" {number(naive['hours'] / ours['hours'])} x"
    )


def _draw_fit(found: dict[str, Any], axes: Any) -> None:
    """Draw predicted against measured steps."""
    for held, color, marker, label in (
        (False, COLORS["light"], "o", "fitted"),
        (True, COLORS["ours"], "D", "held out"),
    ):
        chosen = [case for case in found["cases"] if case["held_out"] == held]
        seconds = np.array([case["seconds"]["median"] for case in chosen])
        predicted = seconds * (1 + np.array([case["error"] for case in chosen]))
        style = {"color": color, "marker": marker, "edgecolor": "black", "label": label}
        axes.scatter(seconds, predicted, **style)
    medians = [case["seconds"]["median"] for case in found["cases"]]
    span = [min(medians), max(medians)]
    axes.plot(span, span, color="black", linewidth=0.8)
    axes.set_xlabel(f"measured step, s ({machine(found)})")
    axes.set_ylabel("predicted step, s")
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)


def _draw_projected(projected: list[dict[str, Any]], axes: Any) -> None:
    """Draw GPU-hours against rows.

    One line for per-row training, which does not depend on strings, and one per number of strings.
    """
    shown = {
        (entry["strings"], entry["rows"]): entry
        for entry in projected
        if entry["gpus"] == SHOWN_GPUS
    }
    rows = sorted({num_rows for _, num_rows in shown})
    naive = [shown[10, num]["naive"]["gpu_hours"] for num in rows]
    style = {"color": "black", "linewidth": 3, "zorder": 3}
    axes.plot(rows, naive, ":", label="per row, however many strings", **style)
    colors = (COLORS["ours"], COLORS["dark"], COLORS["mid"])
    for strings, marker, color in zip((10, 1e5, 1e7), MARKERS, colors, strict=False):
        hours = [shown[strings, num]["ours"]["gpu_hours"] for num in rows]
        label = f"once per step, {strings:,.0f} strings"
        axes.plot(rows, hours, marker=marker, color=color, label=label)
    axes.set(xscale="log", yscale="log", xlabel="rows of the table")
    axes.set_ylabel(f"GPU-hours of 15 epochs on {SHOWN_GPUS} GPUs")
    axes.set_title("projected from assumed GPU rates, not measured", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
