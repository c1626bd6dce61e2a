"""How training grows: a cost model fitted on measured steps, checked on steps that the fit never
saw, and then carried to where nobody has measured.

Measured: steps on this machine, with rows, distinct strings, their lengths, micro-batches and mode
all varied. A third of them is held out; the errors on those are printed, and are what the fitted
part can be trusted to. Projected: everything about GPUs. Its rates are assumptions, stated in one
table (`costmodel.GPU`); it says where the limit moves, not what a cluster will show.
"""

import statistics
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.costmodel import (
    GPU,
    TERMS,
    Architecture,
    features,
    fit,
    project,
    relative_errors,
    table_sizes,
)
from benchmarks.harness.publish import (
    COLORS,
    MARKERS,
    axes_pair,
    heading,
    machine,
    number,
    output_path,
    parser,
    publish,
    save,
    table,
    tell,
)
from benchmarks.harness.setting import (
    MODES,
    PREFIX_LAYERS,
    SMALL_NETWORK,
    Stepper,
    batch_of,
    gradient_errors,
    made_strings,
    make_setting,
)
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, spread
from fusionnet.assemble import count_trainable


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
NAIVE_MODES = ("naive_128", "naive_longest")


def main(words: list[str]) -> None:
    """Measure, fit, check, project, and write benchmarks/results/scaling.json, .md and .png."""
    options = parser("scaling", __doc__)
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
    found |= {"architecture": asdict(architecture), **check(architecture, cases)}
    found["assumed"] = {name: asdict(assumption) for name, assumption in GPU.items()}
    found["projected"] = projections(full_size(architecture))
    publish(output_path("scaling", arguments), found, as_markdown, draw)


def measure(folder: Path, size: Size, precision: str) -> tuple[Architecture, list[dict[str, Any]]]:
    """Return the architecture, and per step what was counted and how long it took; short and long
    strings alternate.
    """
    strings = [
        *made_strings(size.distinct[-1], 1, (3, 8)),
        *made_strings(size.distinct[-1], 2, (16, 24)),
    ]
    make_setting(folder, size.encoder, 24, strings, size.overrides)
    gradient_errors(folder, overrides=size.overrides)
    turns, cases = {}, {}
    architecture: Architecture | None = None
    for mode, micro_batches in product(
        ("naive_128", "naive_longest", "per_microbatch", "per_step", "prefix", "frozen"),
        size.micro_batches,
    ):
        stepper = Stepper(folder, mode, precision, micro_batches, 1, size.overrides)
        architecture = architecture or architecture_of(stepper)
        lengths = stepper.cache.strings("polymer").tokens.lengths
        order = lengths.argsort()
        pools = {"short": order[: len(order) // 2], "long": order[len(order) // 2 :]}
        rows_options = size.naive_rows if MODES[mode].is_naive else size.rows
        for place, (rows, distinct) in enumerate(
            product(rows_options, size.distinct[:1] if mode == "frozen" else size.distinct)
        ):
            # lengths, numbers of strings and rows vary independently
            kind = ("short", "long")[(place + place // len(size.distinct)) % 2]
            pool = pools[kind][:distinct]
            picks = torch.from_numpy(np.random.default_rng(place).integers(0, len(pool), rows))
            batch = batch_of(stepper.cache, rows, pool[picks])
            name = f"{mode} {rows} rows, {distinct} {kind} strings, {micro_batches} micro-batches"
            cases[name] = (stepper, batch, mode, micro_batches)
            turns[name] = lambda stepper=stepper, batch=batch: (
                stepper.step(batch),
                stepper.tokens,
                stepper.token_pairs,
                stepper.passes,
            )
        turns[name]()
    assert architecture is not None
    measured = interleaved(turns, size.rounds, tell)
    return architecture, [
        _case(name, *cases[name], measured[name], PREFIX_LAYERS[size.encoder], architecture)
        for name in turns
    ]


def _case(
    name: str,
    stepper: Stepper,
    batch: Any,
    mode: str,
    micro_batches: int,
    turns: list[Any],
    first: int,
    architecture: Architecture,
) -> dict[str, Any]:
    seconds = [turn[0] for turn in turns]
    _, tokens, pairs, passes = turns[0]
    layers = architecture.layers - first if mode == "prefix" else architecture.layers
    work = features(architecture, batch.num_rows, tokens, pairs, passes, micro_batches, layers)
    return {"name": name, "mode": mode, "work": work, "seconds": spread(seconds)}


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


def full_size(measured: Architecture) -> Architecture:
    """Return the architecture that is projected: polyBERT's encoder and Stage 1's network, whatever
    a quick run measured.
    """
    full = Architecture(600, 12, 512, 13_400_000, 14_100_000)
    return measured if (measured.width, measured.layers) == (full.width, full.layers) else full


def check(architecture: Architecture, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fitted rates, the cases with what the fit says of them, and the errors on the
    third that it never saw.
    """
    held_out = np.random.default_rng(0).permutation(len(cases)) % 3 == 0
    work, seconds = (
        np.array([case["work"] for case in cases]),
        np.array([case["seconds"]["median"] for case in cases]),
    )
    rates = fit(work[~held_out], seconds[~held_out])
    errors = relative_errors(work, seconds, rates)
    for case, error, held in zip(cases, errors, held_out, strict=True):
        case |= {"error": float(error), "held_out": bool(held)}
    return {
        "rates": dict(zip(TERMS, rates.tolist(), strict=True)),
        "cases": cases,
        "held_out_error": {
            "median": float(np.median(np.abs(errors[held_out]))),
            "largest": float(np.abs(errors[held_out]).max()),
        },
        "fitted_error": {
            "median": float(np.median(np.abs(errors[~held_out]))),
            "largest": float(np.abs(errors[~held_out]).max()),
        },
        "noise": statistics.median(
            (case["seconds"]["p80"] - case["seconds"]["p20"]) / case["seconds"]["median"]
            for case in cases
        ),
    }


def projections(architecture: Architecture) -> list[dict[str, Any]]:
    """Return naive and once-per-step training of every size of table, strings and cluster."""
    found = []
    for rows, strings, gpus in product(*table_sizes()):
        entry: dict[str, Any] = {"rows": rows, "strings": strings, "gpus": gpus}
        for name, naive in (("naive", True), ("ours", False)):
            made = project(architecture, rows, strings, gpus, naive)
            entry[name] = {
                "hours": made.hours,
                "gpu_hours": made.gpu_hours,
                "limit": made.limit,
                "step_s": made.step_s,
                "distinct": made.distinct_per_step,
            }
        found.append(entry)
    return found


def as_markdown(found: dict[str, Any]) -> str:
    """Return the fit, its check, the assumptions and the projections."""
    held, fitted = found["held_out_error"], found["fitted_error"]
    lines = heading(f"Cost model of a step, {found['encoder']} size, {found['precision']}", found)
    lines += [
        "## Measured here, and checked",
        "",
        "Seconds per unit of counted work, fitted on two thirds of the measured steps:",
        "",
    ]
    lines += [
        *table(
            ("work", "seconds per unit", "that is"),
            [
                (term, f"{rate:.3g}", _per_second(term, rate))
                for term, rate in found["rates"].items()
            ],
        ),
        "",
    ]
    lines.append(
        f"Error of the prediction on {sum(case['held_out'] for case in found['cases'])} steps that"
        f" the fit never saw: median {held['median']:.1%}, largest {held['largest']:.1%} (on the"
        f" fitted ones {fitted['median']:.1%} and {fitted['largest']:.1%}; spread of repeated steps"
        f" {found['noise']:.1%})."
    )
    lines += ["", "| held-out step | measured, s | predicted, s | error |", "|---|---|---|---|"]
    for case in found["cases"]:
        if case["held_out"]:
            seconds = case["seconds"]["median"]
            lines.append(
                f"| {case['name']} | {number(seconds)} | {number(seconds * (1 + case['error']))} |"
                f" {case['error']:+.1%} |"
            )
    lines += ["", "## Projected, not measured", "", "What is assumed of a GPU:", ""]
    lines += table(
        ("what", "value", "unit", "source"),
        [(name, f"{a['value']:g}", a["unit"], a["source"]) for name, a in found["assumed"].items()],
    )
    lines += [
        "",
        (
            "Training of 15 epochs in hours, once per step / per row (what limits the step): rows"
            " down, distinct strings across."
        ),
        "",
    ]
    rows, strings, gpus = table_sizes()
    by_key = {
        (entry["rows"], entry["strings"], entry["gpus"]): entry for entry in found["projected"]
    }
    for num_gpus in gpus:
        cells = [
            (f"{num_rows:.0e}", *(_projected(by_key[num_rows, num, num_gpus]) for num in strings))
            for num_rows in rows
        ]
        lines += [
            f"### {num_gpus:,} GPU{'s' * (num_gpus > 1)}",
            "",
            *table(("rows", *(f"{num:,.0f} strings" for num in strings)), cells),
            "",
        ]
    return "\n".join(lines)


def _projected(entry: dict[str, Any]) -> str:
    ours, naive = entry["ours"], entry["naive"]
    return (
        f"{number(ours['hours'])} ({ours['limit']}) / {number(naive['hours'])} ({naive['limit']}):"
        f" {number(naive['hours'] / ours['hours'])} x"
    )


def _per_second(term: str, rate: float) -> str:
    if rate == 0:
        return "not seen in these steps"
    return f"{1e-9 / rate:,.1f} GFLOP/s" if term.endswith("FLOP") else f"{1e3 * rate:,.1f} ms each"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw predicted against measured steps, and projected GPU-hours against rows."""
    figure, (left, right) = axes_pair(10.5, 4.0, columns=2)
    for held, color, marker, label in (
        (False, COLORS["light"], "o", "fitted"),
        (True, COLORS["ours"], "D", "held out"),
    ):
        chosen = [case for case in found["cases"] if case["held_out"] == held]
        seconds = np.array([case["seconds"]["median"] for case in chosen])
        left.scatter(
            seconds,
            seconds * (1 + np.array([case["error"] for case in chosen])),
            color=color,
            marker=marker,
            edgecolor="black",
            label=label,
        )
    span = [
        min(case["seconds"]["median"] for case in found["cases"]),
        max(case["seconds"]["median"] for case in found["cases"]),
    ]
    left.plot(span, span, color="black", linewidth=0.8)
    left.set_xlabel(f"measured step, s ({machine(found)})")
    left.set_ylabel("predicted step, s")
    _draw_projected(right, found["projected"])
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
    right.set_xlabel("rows of the table")
    right.set_ylabel("GPU-hours of 15 epochs on 64 GPUs")
    right.set_title("projected from assumed GPU rates, not measured", fontsize=9)
    save(figure, path)


def _draw_projected(axes: Any, projected: list[dict[str, Any]], gpus: int = 64) -> None:
    """Draw GPU-hours against rows: one line for per-row training, which does not depend on strings,
    and one per number of strings.
    """
    shown = {
        (entry["strings"], entry["rows"]): entry for entry in projected if entry["gpus"] == gpus
    }
    rows = sorted({num_rows for _, num_rows in shown})
    axes.plot(
        rows,
        [shown[10, num]["naive"]["gpu_hours"] for num in rows],
        ":",
        color="black",
        linewidth=3,
        label="per row, however many strings",
        zorder=3,
    )
    for strings, marker, color in zip(
        (10, 1e5, 1e7), MARKERS, (COLORS["ours"], COLORS["dark"], COLORS["mid"]), strict=False
    ):
        hours = [shown[strings, num]["ours"]["gpu_hours"] for num in rows]
        axes.plot(
            rows, hours, marker=marker, color=color, label=f"once per step, {strings:,.0f} strings"
        )
