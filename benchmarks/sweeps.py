"""Where encoding once per step pays, and where it stops: the same step while one thing varies.

`strings` is the curve at full size: polyBERT's architecture, the full number of rows, distinct
strings drawn alike. The other sweeps vary more than hours of two cores allow at that size, so they
use an encoder of a middle size (it is named beside each); what they show are ratios, and where
curves cross.

Naive steps are extended from small ones along a line, as in `throughput`. Naive here is the best a
per-row loop can do without knowing that rows share strings: batches of like length.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Column, Table, number
from benchmarks.harness.pictures import COLORS, MARKERS
from benchmarks.harness.publish import (
    Report,
    machine,
    output_path,
    parser,
    publish,
    tell,
    with_kept,
)
from benchmarks.harness.setting import SMALL_NETWORK
from benchmarks.harness.stamp import stamp
from benchmarks.sweep_steps import Size, by_length, by_micro_batch, by_ranks, by_strings

FULL = Size("polybert", "middle", 8192, (32, 64, 96), (128, 256, 384), 3)
QUICK = Size(
    "middle",
    "tiny",
    1024,
    (64, 128, 192),
    (64, 128, 192),
    2,
    (1, 21, 100),
    (1, 30, 300, 1000),
    (8, 32, 128),
    (64, 1024),
    (1, 2),
    SMALL_NETWORK,
)
BOUND = (
    "The bound charges every encoder token what naive pays for one, padding included, and counts"
    " tokens that are encoded twice in bounded memory twice. The encoder without padding pays less,"
    " so with many strings the measured speed-up lies above it."
)
RUN: dict[str, Callable[[Path, Size, str], dict[str, Any]]] = {
    "strings": by_strings,
    "uniform": partial(by_strings, law="uniform", at_full_size=False),
    "zipf": partial(by_strings, law="zipf", at_full_size=False),
    "length": by_length,
    "micro_batch": by_micro_batch,
    "ranks": by_ranks,
}


def main(words: list[str]) -> None:
    """Run the sweeps and write benchmarks/results/sweeps.json, .md and .png."""
    options = parser("sweeps", __doc__ or "")
    only = "the others stay as the file has them"
    options.add_argument("--only", nargs="+", choices=RUN, default=list(RUN), help=only)
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "precision": arguments.precision,
        "rows": size.rows,
    }
    output = output_path("sweeps", arguments)
    made = {key: found[key] for key in ("commit", "date")}
    fresh: dict[str, Any] = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            tell(f"now measuring the sweep {name}")
            fresh[name] = RUN[name](Path(folder), size, arguments.precision) | made
    sweeps = with_kept(output, "sweeps", fresh, RUN)
    publish(output, {**found, "sweeps": sweeps}, report)


def report(found: dict[str, Any]) -> Report:
    """Return the sweeps: speed-ups against distinct strings are drawn, else whatever there is."""
    sweeps = found["sweeps"]
    blocks: list[str | Table] = []
    for name, sweep in sweeps.items():
        where = f"encoder of {sweep['encoder']} size; {sweep['commit']}, {sweep['date']}"
        columns = [Column(sweep["axis"], "x")]
        columns += [Column(key, partial(_median, key)) for key in sweep["points"][0] if key != "x"]
        blocks += [f"## {name}: {sweep['axis']} ({where})", Table(columns, sweep["points"])]
        if "frozen_s" in sweep:
            blocks.append(_beside(sweep))
    groups = [
        [name for name in names if name in sweeps] for names in (("strings",), ("uniform", "zipf"))
    ]
    shown = [names for names in groups if names] or [[name] for name in sweeps]
    return Report(
        f"Sweeps: a step of {found['rows']:,} rows while one thing varies, {found['precision']}",
        ("Medians of interleaved rounds.", BOUND),
        blocks,
        [partial(_draw_curves, found, names) for names in shown],
        size=(5.2 * len(shown), 3.8),
    )


def _median(key: str, point: dict[str, Any]) -> float:
    return point[key]["median"] if isinstance(point[key], dict) else point[key]


def _beside(sweep: dict[str, Any]) -> str:
    """Return the same step in other modes, and where encoding once per step stops paying."""
    naive = ", ".join(
        f"{mode} {number(steps['median'])} s" for mode, steps in sweep["naive_s"].items()
    )
    lines = [f"The same step: frozen {number(sweep['frozen_s']['median'])} s, {naive} (extended)."]
    for limit, distinct in sweep["stops_paying"].items():
        where = f"at {number(distinct)} distinct strings in the step"
        lines.append(
            "The speed-up over per-row encoding in batches of like length falls below"
            f" {limit} {'in no measured point' if distinct is None else where}."
        )
    return "\n".join(lines)


def _draw_curves(found: dict[str, Any], names: list[str], axes: Any) -> None:
    """Draw the speed-up of some sweeps over their common axis."""
    sweeps = found["sweeps"]
    colors = (COLORS["ours"], COLORS["dark"])
    for name, marker, color in zip(names, MARKERS, colors, strict=False):
        _curve(axes, sweeps[name], name, marker, color)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    first = sweeps[names[0]]
    in_step = "distinct" in first["points"][0]
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="distinct strings in the step" if in_step else first["axis"],
        ylabel=f"speed-up of per_step ({found['rows']:,} rows), times",
    )
    title = f"{first['encoder']} size, {found['precision']}, {machine(found)}"
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _curve(axes: Any, sweep: dict[str, Any], name: str, marker: str, color: str) -> None:
    """Draw a sweep's first speed-up over its axis (strings: those that are in the step).

    Its bound is drawn where there is one.
    """
    points = sweep["points"]
    key = next(key for key in points[0] if key.startswith("speedup_vs_"))
    x = [point.get("distinct", point["x"]) for point in points]
    low, middle, high = (
        np.array([point[key][each] for point in points]) for each in ("p20", "median", "p80")
    )
    label = f"measured, {name}, against {key.removeprefix('speedup_vs_')}"
    style = {"marker": marker, "color": color, "capsize": 2, "label": label}
    axes.errorbar(x, middle, np.abs([low - middle, high - middle]), **style)
    bound = key.replace("speedup", "bound")
    if bound in points[0]:
        bounds = [point[bound] for point in points]
        axes.plot(x, bounds, color=color, linestyle="--", label=f"Amdahl's bound, {name}")
