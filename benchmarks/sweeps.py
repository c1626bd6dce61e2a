"""Where encoding once per step pays, and where it stops: the same step while one thing varies.

`strings` is the curve at full size: polyBERT's architecture, the full number of rows, distinct
strings drawn alike. The other sweeps vary more than hours of two cores allow at that size, so they
use an encoder of a middle size (it is named beside each); what they show are ratios, and where
curves cross.

Naive steps are extended from small ones along a line, as in `throughput`. Naive here is the best a
per-row loop can do without knowing that rows share strings: batches of like length.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

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
    with_kept,
)
from benchmarks.harness.setting import (
    SMALL_NETWORK,
    Stepper,
    batch_of,
    gradient_errors,
    made_strings,
    make_setting,
)
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import extended, interleaved, paired_ratio, spread
from benchmarks.harness.workers import REPOSITORY
from benchmarks.throughput import Turn, amdahl
from embedcache.cache.reader import open_cache
from embedcache.errors import UserError


@dataclass(frozen=True)
class Size:
    """How far each axis goes."""

    encoder: str  # of the curve at full size
    small: str  # of the other sweeps
    rows: int
    # of the naive steps at the curve's size, in micro-batches of the first
    naive_rows: tuple[int, int, int]
    # at the small size: micro-batches as large as memory allows, so that naive pays no overhead it
    # need not
    small_naive_rows: tuple[int, int, int]
    rounds: int
    strings: tuple[int, ...] = (1, 5, 21, 100, 300, 1000)
    vocabulary: tuple[int, ...] = (1, 10, 100, 1000, 5000, 20_000)
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    micro: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    ranks: tuple[int, ...] = (1, 2)
    overrides: tuple[str, ...] = ()


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
SWEEPS = ("strings", "uniform", "zipf", "length", "micro_batch", "ranks")


def main(words: list[str]) -> None:
    """Run the sweeps and write benchmarks/results/sweeps.json, .md and .png."""
    options = parser("sweeps", __doc__)
    options.add_argument(
        "--only",
        nargs="+",
        choices=SWEEPS,
        default=list(SWEEPS),
        help="the others stay as the file has them",
    )
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
    fresh: dict[str, Any] = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            tell(f"sweep: {name}")
            fresh[name] = RUN[name](Path(folder), size, arguments.precision) | {
                "commit": found["commit"],
                "date": found["date"],
            }
    publish(
        output, {**found, "sweeps": with_kept(output, "sweeps", fresh, SWEEPS)}, as_markdown, draw
    )


def draw_ids(num_rows: int, num_strings: int, law: str, seed: int = 0) -> Int[Tensor, " B"]:
    """Return string ids of rows drawn from `num_strings` strings, each as likely as the others, or
    by Zipf's law (the k-th as likely as 1 / k).
    """
    weight = 1 / np.arange(1, num_strings + 1) if law == "zipf" else np.ones(num_strings)
    return torch.from_numpy(
        np.random.default_rng(seed).choice(num_strings, num_rows, p=weight / weight.sum())
    )


def by_strings(
    folder: Path, size: Size, precision: str, law: str = "uniform", at_full_size: bool = True
) -> dict[str, Any]:
    """Return the step's time against the number of distinct strings of the table."""
    counts, naive_rows = (
        (size.strings, size.naive_rows)
        if at_full_size
        else (size.vocabulary, size.small_naive_rows)
    )
    strings = made_strings(max(counts))
    make_setting(
        folder,
        size.encoder if at_full_size else size.small,
        max(24, -(-max(counts) // 60)),
        strings,
        size.overrides,
    )
    errors = gradient_errors(folder, overrides=size.overrides)
    spec = {
        "folder": str(folder),
        "precision": precision,
        "naive_rows": naive_rows,
        "overrides": size.overrides,
    }
    yardsticks = ("naive_128", "naive_bucketed") if at_full_size else ("naive_bucketed",)
    everything = lambda rows: draw_ids(rows, max(counts), law)  # noqa: E731
    naive = {mode: Turn({**spec, "mode": mode}, everything) for mode in yardsticks}
    ours, frozen = (
        Stepper(folder, mode, precision, size.rows, None, size.overrides)
        for mode in ("per_step", "frozen")
    )
    batches = {
        count: batch_of(ours.cache, size.rows, draw_ids(size.rows, count, law)) for count in counts
    }
    turns: dict[str, Callable[[], Any]] = {
        mode: lambda turn=turn: turn(None) for mode, turn in naive.items()
    }
    turns["frozen"] = lambda: {"step": frozen.step(batches[counts[-1]])}
    for count in counts:
        turns[f"per_step {count}"] = lambda count=count: {
            "step": ours.step(batches[count]),
            "tokens": ours.tokens,
        }
    ours.step(batches[counts[0]])
    frozen.step(batches[counts[0]])
    return _by_strings(
        size, counts, batches, interleaved(turns, size.rounds, tell), yardsticks, naive_rows
    ) | {
        "axis": "distinct strings of the table",
        "encoder": size.encoder if at_full_size else size.small,
        "law": law,
        "gradient_error": errors,
    }


def _by_strings(
    size: Size,
    counts: Sequence[int],
    batches: dict[int, Any],
    measured: dict[str, list[Any]],
    yardsticks: Sequence[str],
    naive_rows: Sequence[int],
) -> dict[str, Any]:
    """Return steps, speed-ups and bounds at each number of strings."""
    frozen = [turn["step"] for turn in measured["frozen"]]
    naive = {
        mode: [extended(turn["seconds"], size.rows)[0] for turn in measured[mode]]
        for mode in yardsticks
    }
    tokens = {mode: measured[mode][0]["tokens"] * size.rows / naive_rows[-1] for mode in yardsticks}
    points = []
    for count in counts:
        turns = measured[f"per_step {count}"]
        steps = [turn["step"] for turn in turns]
        point: dict[str, Any] = {
            "x": count,
            "distinct": len(batches[count].string_id.unique()),
            "per_step_s": spread(steps),
            "tokens": turns[0]["tokens"],
        }
        for mode in yardsticks:
            f = 1 - statistics.median(frozen) / statistics.median(naive[mode])
            point[f"speedup_vs_{mode}"] = paired_ratio(naive[mode], steps)
            point[f"bound_vs_{mode}"] = amdahl(f, tokens[mode] / turns[0]["tokens"])
        points.append(point)
    best = f"speedup_vs_{yardsticks[-1]}"
    return {
        "points": points,
        "frozen_s": spread(frozen),
        "naive_s": {mode: spread(steps) for mode, steps in naive.items()},
        "stops_paying": {
            str(limit): crossing(
                [(point["distinct"], point[best]["median"]) for point in points], limit
            )
            for limit in (2.0, 1.1)
        },
    }


def crossing(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """Return where a falling curve crosses `limit`, on straight lines between its points in the
    logarithms of both axes; None where it does not.
    """
    for (x, y), (x_next, y_next) in itertools.pairwise(points):
        if y >= limit > y_next:
            share = (np.log(y) - np.log(limit)) / (np.log(y) - np.log(y_next))
            return float(np.exp(np.log(x) + share * (np.log(x_next) - np.log(x))))
    return None


def by_length(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the length of its 21 strings."""
    longest = max(size.lengths)
    strings = [
        string
        for low in size.lengths
        for string in made_strings(60, low, (max(1, low // 4), max(2, low // 2)), 2 * longest)
    ]
    strings = list(dict.fromkeys(strings))
    make_setting(folder, size.small, 24, strings, size.overrides)
    lengths = open_cache(folder / "cache.zarr").strings("polymer").tokens.lengths
    spec = {
        "folder": str(folder),
        "precision": precision,
        "naive_rows": size.small_naive_rows,
        "overrides": size.overrides,
        "mode": "naive_longest",
    }
    ours = Stepper(folder, "per_step", precision, size.rows, None, size.overrides)
    turns: dict[str, Callable[[], Any]] = {}
    for wanted in size.lengths:
        nearest = (lengths - wanted).abs().argsort()[:21]
        pick = lambda rows, nearest=nearest: nearest[draw_ids(rows, len(nearest), "uniform")]  # noqa: E731
        naive, batch = Turn(spec, pick), batch_of(ours.cache, size.rows, pick(size.rows))
        turns[f"naive {wanted}"] = lambda naive=naive: extended(naive(None)["seconds"], size.rows)[
            0
        ]
        turns[f"ours {wanted}"] = lambda batch=batch: ours.step(batch)
        turns[f"ours {wanted}"]()
    measured = interleaved(turns, size.rounds, tell)
    points = [
        {
            "x": wanted,
            "per_step_s": spread(measured[f"ours {wanted}"]),
            "naive_longest_s": spread(measured[f"naive {wanted}"]),
            "speedup_vs_naive_longest": paired_ratio(
                measured[f"naive {wanted}"], measured[f"ours {wanted}"]
            ),
        }
        for wanted in size.lengths
    ]
    return {"points": points, "axis": "tokens of a string", "encoder": size.small}


def by_micro_batch(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the rows of a micro-batch: once per step against torch.unique
    in each micro-batch.
    """
    make_setting(folder, size.small, 24, overrides=size.overrides)
    turns: dict[str, Callable[[], Any]] = {}
    for rows in size.micro:
        for mode in ("per_step", "per_microbatch"):
            stepper = Stepper(folder, mode, precision, size.rows, rows, size.overrides)
            batch = batch_of(stepper.cache, size.rows)
            turns[f"{mode} {rows}"] = lambda stepper=stepper, batch=batch: stepper.step(batch)
            turns[f"{mode} {rows}"]()
    measured = interleaved(turns, size.rounds, tell)
    points = [
        {
            "x": rows,
            **{
                f"{mode}_s": spread(measured[f"{mode} {rows}"])
                for mode in ("per_step", "per_microbatch")
            },
            "speedup_vs_per_microbatch": paired_ratio(
                measured[f"per_microbatch {rows}"], measured[f"per_step {rows}"]
            ),
        }
        for rows in size.micro
    ]
    return {"points": points, "axis": "rows of a micro-batch", "encoder": size.small}


def by_ranks(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the number of ranks on this machine, whose cores they share,
    by the deepspeed launcher.
    """
    make_setting(folder, size.small, 24, overrides=size.overrides)
    points = []
    for ranks in size.ranks:
        output = folder / f"ranks{ranks}.json"
        request = {
            "folder": str(folder),
            "precision": precision,
            "rows": size.rows,
            "rounds": size.rounds,
            "overrides": size.overrides,
            "output": str(output),
        }
        launch = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--num_accelerators",
            str(ranks),
            "--module",
            "benchmarks.harness.ranks",
            json.dumps(request),
        ]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
        }
        done = subprocess.run(
            launch, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or not output.is_file():
            raise UserError(
                f"{ranks} ranks by the deepspeed launcher"
                f" failed:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        measured = json.loads(output.read_text())
        points.append(
            {
                "x": ranks,
                **{f"{mode}_s": spread(steps) for mode, steps in measured.items()},
                "speedup_vs_per_microbatch": paired_ratio(
                    measured["per_microbatch"], measured["per_step"]
                ),
            }
        )
    return {"points": points, "axis": "ranks", "encoder": size.small}


RUN: dict[str, Callable[[Path, Size, str], dict[str, Any]]] = {
    "strings": by_strings,
    "uniform": lambda folder, size, precision: by_strings(
        folder, size, precision, "uniform", at_full_size=False
    ),
    "zipf": lambda folder, size, precision: by_strings(
        folder, size, precision, "zipf", at_full_size=False
    ),
    "length": by_length,
    "micro_batch": by_micro_batch,
    "ranks": by_ranks,
}


def as_markdown(found: dict[str, Any]) -> str:
    """Return the sweeps as tables."""
    lines = heading(
        f"Sweeps: a step of {found['rows']:,} rows while one thing varies, {found['precision']}",
        found,
        "Medians of interleaved rounds.",
        BOUND,
    )
    for name, sweep in found["sweeps"].items():
        lines += [
            (
                f"## {name}: {sweep['axis']} (encoder of {sweep['encoder']} size;"
                f" {sweep['commit']}, {sweep['date']})"
            ),
            "",
        ]
        keys = [key for key in sweep["points"][0] if key != "x"]
        cells = [
            (
                point["x"],
                *(
                    number(point[key]["median"] if isinstance(point[key], dict) else point[key])
                    for key in keys
                ),
            )
            for point in sweep["points"]
        ]
        lines += [*table((sweep["axis"], *keys), cells), ""]
        if "frozen_s" in sweep:
            naive = ", ".join(
                f"{mode} {number(steps['median'])} s" for mode, steps in sweep["naive_s"].items()
            )
            lines.append(
                f"The same step: frozen {number(sweep['frozen_s']['median'])} s, {naive}"
                " (extended)."
            )
            for limit, place in sweep["stops_paying"].items():
                where = (
                    "in no measured point"
                    if place is None
                    else f"at {number(place)} distinct strings in the step"
                )
                lines.append(
                    "The speed-up over per-row encoding in batches of like length falls below"
                    f" {limit} {where}."
                )
            lines.append("")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the speed-up against distinct strings with its bound, at both sizes; where that was not
    measured, against whatever was.
    """
    sweeps = found["sweeps"]
    shown = [
        names for names in (("strings",), ("uniform", "zipf")) if sweeps.keys() & set(names)
    ] or [(name,) for name in sweeps]
    figure, axes = axes_pair(5.2 * len(shown), 3.8, columns=len(shown))
    for names, each in zip(shown, np.atleast_1d(axes), strict=True):
        there = [name for name in names if name in sweeps]
        for name, marker, color in zip(
            there, MARKERS, (COLORS["ours"], COLORS["dark"]), strict=False
        ):
            _curve(each, sweeps[name], name, marker, color)
        each.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis = (
            "distinct strings in the step"
            if "distinct" in sweeps[there[0]]["points"][0]
            else sweeps[there[0]]["axis"]
        )
        each.set(
            xscale="log",
            yscale="log",
            xlabel=axis,
            ylabel=f"speed-up of per_step ({found['rows']:,} rows), times",
        )
        each.set_title(
            f"{sweeps[there[0]]['encoder']} size, {found['precision']}, {machine(found)}",
            fontsize=9,
        )
        each.legend(frameon=False, fontsize=8)
    save(figure, path)


def _curve(axes: Any, sweep: dict[str, Any], name: str, marker: str, color: str) -> None:
    """Draw a sweep's first speed-up over its axis (strings: those that are in the step), and its
    bound where there is one.
    """
    key = next(key for key in sweep["points"][0] if key.startswith("speedup_vs_"))
    x = [point.get("distinct", point["x"]) for point in sweep["points"]]
    ratios = [point[key] for point in sweep["points"]]
    label = f"{name}, against {key.removeprefix('speedup_vs_')}"
    middle = np.array([ratio["median"] for ratio in ratios])
    errors = np.abs(np.array([[ratio["p20"], ratio["p80"]] for ratio in ratios]).T - middle)
    axes.errorbar(
        x, middle, errors, marker=marker, color=color, capsize=2, label=f"measured, {label}"
    )
    bound = key.replace("speedup", "bound")
    if bound in sweep["points"][0]:
        axes.plot(
            x,
            [point[bound] for point in sweep["points"]],
            color=color,
            linestyle="--",
            label=f"Amdahl's bound, {name}",
        )
