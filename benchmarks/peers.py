"""The same training through what people use today, side by side in one run.

All loops start from equal weights on equal rows with dropout off, take turns step by step, and must
show the same loss at every step: whoever did less work would be found out there. A peer that is not
installed is left out, and the result says so: pip install -e '.[bench]'.
"""

import importlib.util
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from benchmarks.harness.publish import (
    COLORS,
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
from benchmarks.harness.setting import SMALL_NETWORK, gradient_errors, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from benchmarks.harness.workers import Worker
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
    options = parser("peers", __doc__)
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
    found["loops"] = run(
        size, arguments.precision, [name for name in LOOPS if name not in found["absent"]]
    )
    publish(output_path("peers", arguments), found, as_markdown, draw)


def run(size: Size, precision: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return each loop's rows per second and losses; raises AssertionError where a loop's losses
    are not ours.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        make_setting(folder, size.encoder, 24, overrides=size.overrides)
        gradient_errors(folder, overrides=size.overrides)
        common = {"folder": name, "precision": precision, "overrides": size.overrides}
        step = {**common, "rows": size.rows, "micro_rows": size.micro_rows}
        specs = {
            loop: {**step, "loop": loop, "mode": loop.removeprefix("ours, ")} for loop in names
        }
        specs[WHOLE] = {
            **common,
            "loop": OURS,
            "mode": "per_step",
            "rows": size.whole_rows,
            "micro_rows": None,
        }
        workers = {
            loop: stack.enter_context(Worker("benchmarks.peer_loops:make", spec))
            for loop, spec in specs.items()
        }
        for worker in workers.values():
            _ = worker.ready
        turns = interleaved(
            {loop: worker.ask for loop, worker in workers.items()}, size.rounds, tell
        )
    check_losses(
        {loop: [turn["loss"] for turn in turns[loop]] for loop in names}, TOLERANCE[precision]
    )
    found = {}
    for loop, results in turns.items():
        seconds = [turn["seconds"] for turn in results[1:]]  # the first one warms up
        rows = specs[loop]["rows"]
        found[loop] = {
            "rows": rows,
            "rows_per_s": spread([rows / each for each in seconds]),
            "step_s": spread(seconds),
            "per_step_is_faster_by": (
                paired_ratio(seconds, [turn["seconds"] for turn in turns[OURS][1:]])
                if loop != WHOLE
                else None
            ),
            "losses": [turn["loss"] for turn in results],
            "peak_rss_bytes": results[-1]["peak_rss_bytes"],
        }
    return found


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raise AssertionError unless every loop has our loss at every step, within a share of how far
    the loss has moved.
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


def as_markdown(found: dict[str, Any]) -> str:
    """Return the loops side by side."""
    lines = heading(
        f"The same training in {len(found['loops']) - 1} loops: steps of {found['rows']:,} rows,"
        f" {found['encoder']} size, {found['precision']}",
        found,
        "Equal rows, weights, LoRA, fusion network, loss, AdamW, micro-batches of"
        f" {found['micro_rows']} rows, dropout off; losses compared at every step. Per-row loops"
        " cost the same per row at any size of the batch; ours does not, so its step of"
        f" {found['whole_rows']:,} rows stands last.",
        *(f"{name} was not installed and is not measured." for name in found["absent"]),
    )
    cells = []
    for name, result in found["loops"].items():
        rates, ratio = result["rows_per_s"], result["per_step_is_faster_by"]
        rate = f"{number(rates['median'])} ({number(rates['p20'])} to {number(rates['p80'])})"
        faster = "" if ratio is None else f"{number(ratio['median'])} x"
        whole = found["loops"][WHOLE]["rows_per_s"]["median"] / rates["median"]
        beside = "" if name.startswith("ours") else f"{number(whole)} x"
        loss = "" if name == WHOLE else f"{result['losses'][-1]:.5f}"
        cells.append(
            (
                name,
                f"{result['rows']:,}",
                rate,
                faster,
                beside,
                loss,
                f"{result['peak_rss_bytes'] / 2**30:.1f}",
            )
        )
    header = (
        "loop",
        "rows of a step",
        "rows/s",
        "per_step is faster by",
        f"at {found['whole_rows']:,} rows",
        "final loss",
        "peak GiB",
    )
    return "\n".join([*lines, *table(header, cells)]) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw rows per second of each loop."""
    figure, axes = axes_pair(7.5, 0.42 * len(found["loops"]) + 1.2)
    names = list(found["loops"])[::-1]
    rates = [found["loops"][name]["rows_per_s"]["median"] for name in names]
    bars = axes.barh(
        [f"{name} ({found['loops'][name]['rows']:,} rows)" for name in names],
        rates,
        color=[COLORS["ours" if name.startswith(OURS) else "plain"] for name in names],
    )
    axes.bar_label(bars, [number(rate) for rate in rates], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 2, max(rates) * 4)
    axes.set_xlabel(
        f"rows per second (log scale), {found['encoder']} size,"
        f" {found['precision']}\n{machine(found)}"
    )
    save(figure, path)
