"""What is to be read and seen of the cost model: its fit, its check, what it projects for GPUs, and
how far off that is on the one GPU that was measured.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_rates import H100
from benchmarks.h100 import ROWS, STRINGS, TOKENS
from benchmarks.harness.cells import Column, Table, number
from benchmarks.harness.pictures import COLORS, MARKERS
from benchmarks.harness.publish import Report, machine
from benchmarks.projection import FORMS, table_sizes

SHOWN_GPUS = 64  # in the picture
STATED_GPUS = (1, 8)  # in both forms


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
        "What is taken of a GPU, and from where:",
        Table(of_assumed, found["assumed"].items()),
        *_steps(found["steps"]),
        *_compared(found["compared"]),
        "## Projected training",
        "Training of 15 epochs in hours, once per step / per row (what limits the step): rows down,"
        " distinct strings across.",
    ]
    return Report(
        f"Cost model of a step, {found['encoder']} size, {found['precision']}",
        _projected_by(found),
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


def _projected_by(found: dict[str, Any]) -> tuple[str, ...]:
    """Return when the projection was made, where that was not when the steps were measured."""
    by = found.get("projected_by")
    return (f"Projected by `{by['command']}`, {by['date']}.",) if by else ()


def _steps(steps: list[dict[str, Any]]) -> list[str | Table]:
    """Return the step of Stage 1's strings in both forms."""
    columns = (
        Column("GPUs", "gpus"),
        Column("loop", "loop"),
        Column("step", lambda row: FORMS[row["form"]]),
        Column("kernels, ms", lambda row: 1e3 * row["kernel_s"], ".2f"),
        Column("launches or nodes", "asked", ",.0f"),
        Column("those, ms", lambda row: 1e3 * row["asked_s"], ".2f"),
        Column("between ranks, ms", lambda row: 1e3 * row["communication_s"], ".2f"),
        Column("step, ms", lambda row: 1e3 * row["step_s"], ".2f"),
        Column("rows/s", "rows_per_s", ",.0f"),
    )
    return [
        "### A step in both forms",
        f"{steps[0]['rows']:,.0f} rows on each GPU, {steps[0]['strings']} strings. From Python: the"
        " larger of kernels and launches; replayed: kernels and nodes. On several GPUs training"
        " goes through DeepSpeed's engine, from Python: their replayed steps are what a graph"
        " there would be worth, and do not exist. Nor was a step measured on eight GPUs.",
        Table(columns, steps),
    ]


def _compared(compared: list[dict[str, Any]]) -> list[str | Table]:
    """Return the projection beside what one H100 showed, and what it gets wrong."""
    off = {row["name"]: row["measured"] / row["projected"] for row in compared}
    scale = {"ms": 1e3, "us": 1e6}

    def value(key: str) -> Callable[[dict[str, Any]], float]:
        return lambda row: row[key] * scale.get(row["unit"], 1.0)

    columns = (
        Column("what", lambda row: ", ".join(filter(None, (row["name"], row["unit"])))),
        Column("projected", value("projected")),
        Column("measured", value("measured")),
        Column("measured / projected", lambda row: row["measured"] / row["projected"], ".2f"),
    )
    return [
        "## Projected and measured on one H100",
        f"{H100[0].upper()}{H100[1:]}: {ROWS:,} rows, {STRINGS} strings, {TOKENS} tokens. Projected"
        " from arithmetic, bandwidth and single kernels; of the measured step only its numbers of"
        " launches and nodes are taken, and a launch costs what was assumed before. The measured"
        " seconds of a launch are the step's over its launches; those of a node are what the step"
        " takes beyond its kernels, over its nodes (in training, with the benchmark's kernels). The"
        " steps' 20th and 80th percentiles: 73.5 and 79.1 ms from Python, 5.19 and 5.36 replayed.",
        Table(columns, compared),
        "What it gets wrong:",
        f"- The host. A launch takes {off['host, a launch']:.0f} times what was assumed, so a step"
        " from Python takes what the host takes, and its projection was useless. The other tables"
        " take the measured launch: for this form they are no test of the model. With another host"
        " or engine it is another number.\n"
        f"- The kernels. They take {off['kernel time, replayed']:.1f} times the projected time"
        f" replayed and {off['kernel time, from Python']:.1f} times from Python. The model gives a"
        " start to products alone; the few hundred other kernels of a step get no more than their"
        " bytes and a node. These measurements do not say which kernels miss how much. Nor does it"
        " know that a step from Python has more kernels (1,048 against 579).\n"
        "- The replayed step. It is therefore"
        f" {off['step replayed, training']:.1f} to {off['step replayed, benchmark']:.1f} times as"
        " long as projected: read projected steps as bounds from below. The time from node to node"
        " is not what is wrong: the small kernel's lies between those that the two steps leave.\n"
        f"- Evaluation. It reaches {off['evaluation at 65,536 rows']:.0%} of the projected rows"
        " per second at best. It runs from Python, and the model has no launches for it: 8,192 rows"
        " take 3.8 ms, as about 50 launches would. Why the largest batch is slower than the middle"
        " one it cannot say.\n"
        "- Per-row training. It was not measured in this run. What is left out of it (padding,"
        " micro-batches, what the encoder reads and writes) makes its projection too short, the"
        " kernels above make ours too short: no ratio of the two is tested here.",
    ]


def _projected(projected: list[dict[str, Any]]) -> list[str | Table]:
    """Return a table of rows and strings for each number of GPUs and form of a step."""
    keys = ("rows", "strings", "gpus", "form")
    by_size = {tuple(entry[key] for key in keys): entry for entry in projected}
    rows, strings, gpus = table_sizes()

    def hours(num_strings: float, num_gpus: int, form: str) -> Callable[[float], str]:
        return lambda num_rows: _hours(by_size[num_rows, num_strings, num_gpus, form])

    blocks: list[str | Table] = []
    shown = [(num, form) for num in gpus for form in FORMS if form == "graph" or num in STATED_GPUS]
    for num_gpus, form in shown:
        columns = [Column("rows", lambda num_rows: num_rows, ".0e")]
        columns += [Column(f"{num:,.0f} strings", hours(num, num_gpus, form)) for num in strings]
        name = f"{num_gpus:,} GPU{'s' * (num_gpus > 1)}"
        blocks += [f"### {name}, steps {FORMS[form]}", Table(columns, rows)]
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
        if (entry["gpus"], entry["form"]) == (SHOWN_GPUS, "graph")
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
    axes.set_title("projected from GPU rates, steps replayed; not measured", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
