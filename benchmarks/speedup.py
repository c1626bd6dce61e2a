"""What follows from the turns of all modes: rows per second, speed-ups and the bound.

The bound is Amdahl's: f is the encoder's share of the naive step, r the ratio of encoder tokens,
and no saving of tokens can give more than 1 / ((1 - f) + f / r). It is taken between modes of one
precision.
"""

import statistics
from typing import Any

from benchmarks.harness.timing import PHASES, extended, paired_ratio, spread

STAGE1_ROWS = 15 * 313_236  # epochs times train rows
# of the run's own precision: what the bound may be taken against
YARDSTICKS = ("naive_128", "naive_longest", "naive_bucketed", "naive_compiled")


def summary(turns: list[dict[str, Any]], peak: int, batch_rows: int) -> dict[str, Any]:
    """Return one mode's numbers at the full number of rows, from what its turns measured."""
    measured = [{int(rows): seconds for rows, seconds in turn["seconds"].items()} for turn in turns]
    largest = max(measured[0])
    extrapolated = len(measured[0]) > 1
    if extrapolated:
        steps = [extended(seconds, batch_rows)[0] for seconds in measured]
    else:
        steps = [seconds[largest] for seconds in measured]
    factor = batch_rows / largest
    step = statistics.median(steps)
    result: dict[str, Any] = {
        "rows_per_s": batch_rows / step,
        "step_s": step,
        "spread_s": spread(steps),
        "rounds_s": steps,
        "encoder_tokens_per_step": round(turns[0]["tokens"] * factor),
        "peak_rss_bytes": peak,
        "extrapolated": extrapolated,
    }
    if extrapolated:
        medians = {
            rows: statistics.median(seconds[rows] for seconds in measured) for rows in measured[0]
        }
        result |= {
            "measured_rows": sorted(medians),
            "measured_s": medians,
            "linearity_error": extended(medians, batch_rows)[1],
        }
    result["phases_s"] = {
        phase: factor * statistics.median(turn["phases"][phase] for turn in turns)
        for phase in PHASES
    }
    return result


def amdahl(f: float, r: float) -> float:
    """Return the largest speed-up where a share f of the time falls by r and the rest stays."""
    return 1 / ((1 - f) + f / r)


def derive(found: dict[str, Any]) -> None:
    """Add speed-ups, f, r and the bound to the measured modes."""
    modes = found["modes"]
    ours, frozen = modes["per_step"], modes["frozen"]
    ratios = {
        f"per_step_vs_{mode}": paired_ratio(result["rounds_s"], ours["rounds_s"])
        for mode, result in modes.items()
        if mode != "per_step"
    }
    found["speedup"] = {name: ratio["median"] for name, ratio in ratios.items()}
    found["speedup_spread"] = ratios
    found["bound"] = {}
    for mode in (mode for mode in YARDSTICKS if mode in modes):
        f = 1 - frozen["step_s"] / modes[mode]["step_s"]
        r = modes[mode]["encoder_tokens_per_step"] / ours["encoder_tokens_per_step"]
        bound = amdahl(f, r)
        share = found["speedup"][f"per_step_vs_{mode}"] / bound
        found["bound"][mode] = {"f": f, "r": r, "bound": bound, "share_reached": share}
    found["stage1_hours"] = {
        mode: STAGE1_ROWS / result["rows_per_s"] / 3600 for mode, result in modes.items()
    }
