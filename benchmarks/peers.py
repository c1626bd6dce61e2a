"""The same training through what people use today, side by side in one run.

All loops start from equal weights on equal rows with dropout off, take turns step by step, and must
show the same loss at every step: whoever did less work would be found out there. A peer that is not
installed is left out, and the result says so: pip install -e '.[bench]'.
"""

import importlib.util
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from benchmarks.harness.cells import Column, Table, gib, named, times, with_spread
from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.pictures import draw_rates
from benchmarks.harness.publish import Report, machine, output_path, parser, publish, tell
from benchmarks.harness.setting import SMALL_NETWORK, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from benchmarks.harness.workers import Worker
from benchmarks.peer_base import Answer
from benchmarks.peer_loops import LOOPS

OURS = "ours, per_step"
WHOLE = "ours, per_step, whole batch"
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # of the loss, relative to how far it has come


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    encoder: str
    rows: int  # of a step that everybody takes
    micro_rows: int
    whole_rows: int  # of the step that Stage 1 takes: per-row loops cost the same per row there
    rounds: int
    overrides: tuple[str, ...] = ()


FULL = Size("polybert", 256, 32, 8192, 5)
QUICK = Size("tiny", 128, 32, 1024, 4, SMALL_NETWORK)


def main(words: list[str]) -> None:
    """Run all installed loops and write benchmarks/results/peers.json, .md and .png."""
    options = parser("peers", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    arguments = options.parse_args(words)
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "precision": arguments.precision,
        "encoder": size.encoder,
        "rows": size.rows,
        "whole_rows": size.whole_rows,
        "micro_rows": size.micro_rows,
        "absent": [],
    }
    for name, (_, module) in LOOPS.items():
        if module is not None and importlib.util.find_spec(module) is None:
            found["absent"].append(name)
            tell(f"{name} is not installed and left out; pip install -e '.[bench]'")
        elif module is not None:
            distribution = packages_distributions()[module][0]
            found["versions"][distribution] = version(distribution)
    names = [name for name in LOOPS if name not in found["absent"]]
    found["loops"] = run(size, arguments.precision, names)
    publish(output_path("peers", arguments), found, report)


def run(size: Size, precision: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return each loop's rows per second and losses.

    Raises AssertionError where a loop's losses are not ours.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        tell("now making the setting and comparing gradients")
        make_setting(Path(name), size.encoder, 24, overrides=size.overrides)
        gradient_errors(Path(name), overrides=size.overrides)
        common = {"folder": name, "precision": precision, "overrides": size.overrides}
        step = {**common, "rows": size.rows, "micro_rows": size.micro_rows}
        specs = {
            loop: {**step, "loop": loop, "mode": loop.removeprefix("ours, ")} for loop in names
        }
        whole = {"rows": size.whole_rows, "micro_rows": None}
        specs[WHOLE] = {**common, "loop": OURS, "mode": "per_step", **whole}
        tell("now starting one process per loop")
        workers = {
            loop: stack.enter_context(Worker("benchmarks.peer_loops:make", spec))
            for loop, spec in specs.items()
        }
        for worker in workers.values():
            _ = worker.ready
        asks = {loop: worker.ask for loop, worker in workers.items()}
        turns = interleaved(asks, size.rounds, tell)
    losses = {loop: [turn["loss"] for turn in turns[loop]] for loop in names}
    check_losses(losses, TOLERANCE[precision])
    return {loop: _summary(loop, specs[loop]["rows"], turns) for loop in turns}


def _summary(loop: str, rows: int, turns: dict[str, list[Answer]]) -> dict[str, Any]:
    """Return a loop's rows per second beside ours; the first turn warms up."""
    ours, seconds = ([turn["seconds"] for turn in turns[name][1:]] for name in (OURS, loop))
    return {
        "rows": rows,
        "rows_per_s": spread([rows / each for each in seconds]),
        "step_s": spread(seconds),
        "per_step_is_faster_by": None if loop == WHOLE else paired_ratio(seconds, ours),
        "losses": [turn["loss"] for turn in turns[loop]],
        "peak_rss_bytes": turns[loop][-1]["peak_rss_bytes"],
    }


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raise AssertionError unless every loop has our loss at every step.

    `tolerance` is a share of how far the loss has moved.
    """
    ours = losses[OURS]
    moved = max(max(ours) - min(ours), 1e-6)
    off = {
        name: [abs(own - other) / moved for own, other in zip(ours, values, strict=True)]
        for name, values in losses.items()
    }
    # NaN is in no bound
    wrong = {
        name: shares
        for name, shares in off.items()
        if not all(share <= tolerance for share in shares)
    }
    if wrong:
        raise AssertionError(
            "these loops do not train as ours does (differences of the loss, as shares of its"
            f" motion): {wrong}; losses {losses}"
        )


def report(found: dict[str, Any]) -> Report:
    """Return the loops side by side."""
    loops = found["loops"]
    whole = loops[WHOLE]["rows_per_s"]["median"]

    def at_whole_batch(row: dict[str, Any]) -> float | None:
        ours = row["name"].startswith("ours")
        return None if ours else whole / row["rows_per_s"]["median"]

    def final_loss(row: dict[str, Any]) -> float | None:
        return None if row["name"] == WHOLE else row["losses"][-1]

    columns = (
        Column("loop", "name"),
        Column("rows of a step", "rows"),
        Column("rows/s", "rows_per_s", with_spread),
        Column("per_step is faster by", "per_step_is_faster_by", _faster),
        Column(f"at {found['whole_rows']:,} rows", at_whole_batch, times),
        Column(
            "final loss", lambda row: None if row["name"] == WHOLE else row["losses"][-1], ".5f"
        ),
        Column("peak GiB", "peak_rss_bytes", gib),
    )
    how = (
        "Equal rows, weights, LoRA, fusion network, loss, AdamW, micro-batches of"
        f" {found['micro_rows']} rows, dropout off; losses compared at every step. Per-row loops"
        " cost the same per row at any size of the batch; ours does not, so its step of"
        f" {found['whole_rows']:,} rows stands last."
    )
    return Report(
        f"The same training in {len(loops) - 1} loops: steps of {found['rows']:,} rows,"
        f" {found['encoder']} size, {found['precision']}",
        (how, *(f"{name} was not installed and is not measured." for name in found["absent"])),
        [Table(columns, named(loops))],
        [partial(_draw_loops, found)],
        size=(7.5, 0.42 * len(loops) + 1.2),
    )


def _faster(ratio: dict[str, float] | None) -> str:
    return times(None if ratio is None else ratio["median"])


def _draw_loops(found: dict[str, Any], axes: Any) -> None:
    """Draw rows per second of each loop."""
    titles = {name: f"{name} ({loop['rows']:,} rows)" for name, loop in found["loops"].items()}
    rates = {titles[name]: loop["rows_per_s"]["median"] for name, loop in found["loops"].items()}
    ours = [title for name, title in titles.items() if name.startswith(OURS)]
    unit = f"rows per second (log scale), {found['encoder']} size, {found['precision']}"
    draw_rates(axes, rates, ours, f"{unit}\n{machine(found)}")
