"""The steps that `sweeps` measures: one function per thing that varies.

Each returns the points of its axis; the steps of all points take turns.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.publish import tell
from benchmarks.harness.setting import made_strings, make_setting
from benchmarks.harness.stepper import Stepper, batch_of
from benchmarks.harness.timing import extended, interleaved, paired_ratio, spread
from benchmarks.harness.workers import run_python
from benchmarks.speedup import amdahl
from benchmarks.throughput import Turn
from embedcache.cache.reader import open_cache

NUM_STRINGS = 21  # of each length


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


def draw_ids(num_rows: int, num_strings: int, law: str, seed: int = 0) -> Int[Tensor, " B"]:
    """Return string ids of rows drawn from S strings.

    Each is as likely as the others ("uniform"), or the k-th as likely as 1 / k ("zipf").
    """
    weight = 1 / np.arange(1, num_strings + 1) if law == "zipf" else np.ones(num_strings)
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.choice(num_strings, num_rows, p=weight / weight.sum()))


def by_strings(
    folder: Path, size: Size, precision: str, law: str = "uniform", at_full_size: bool = True
) -> dict[str, Any]:
    """Return the step's time against the number of distinct strings of the table."""
    encoder, counts, naive_rows = size.small, size.vocabulary, size.small_naive_rows
    yardsticks: tuple[str, ...] = ("naive_bucketed",)
    if at_full_size:
        encoder, counts, naive_rows = size.encoder, size.strings, size.naive_rows
        yardsticks = ("naive_128", "naive_bucketed")
    most = max(counts)
    make_setting(folder, encoder, max(24, -(-most // 60)), made_strings(most), size.overrides)
    errors = gradient_errors(folder, overrides=size.overrides)
    spec = {
        "folder": str(folder),
        "precision": precision,
        "naive_rows": naive_rows,
        "overrides": size.overrides,
    }
    draw = partial(draw_ids, num_strings=most, law=law)
    turns: dict[str, Callable[[], Any]] = {
        mode: partial(Turn({**spec, "mode": mode}, draw), None) for mode in yardsticks
    }
    ours, frozen = (
        Stepper(folder, mode, precision, size.rows, None, size.overrides)
        for mode in ("per_step", "frozen")
    )
    batches = {
        count: batch_of(ours.cache, size.rows, draw_ids(size.rows, count, law)) for count in counts
    }
    turns["frozen"] = partial(_turn, frozen, batches[counts[-1]])
    turns |= {f"per_step {count}": partial(_turn, ours, batches[count]) for count in counts}
    ours.step(batches[counts[0]])
    frozen.step(batches[counts[0]])
    measured = interleaved(turns, size.rounds, tell)
    distinct = {count: len(batch.string_id.unique()) for count, batch in batches.items()}
    found = speedups(size.rows, distinct, measured, yardsticks, naive_rows)
    axis = "distinct strings of the table"
    return found | {"axis": axis, "encoder": encoder, "law": law, "gradient_error": errors}


def _turn(stepper: Stepper, batch: Any) -> dict[str, Any]:
    return {"step": stepper.step(batch), "tokens": stepper.tokens}


def speedups(
    num_rows: int,
    distinct: dict[int, int],
    measured: dict[str, list[Any]],
    yardsticks: Sequence[str],
    naive_rows: Sequence[int],
) -> dict[str, Any]:
    """Return steps, speed-ups and bounds at each number of strings of the table.

    `distinct` tells for each how many of them are in the step.
    """
    frozen = [turn["step"] for turn in measured["frozen"]]
    naive = {
        mode: [extended(turn["seconds"], num_rows)[0] for turn in measured[mode]]
        for mode in yardsticks
    }
    factor = num_rows / naive_rows[-1]
    points = []
    for count, in_step in distinct.items():
        turns = measured[f"per_step {count}"]
        steps, tokens = [turn["step"] for turn in turns], turns[0]["tokens"]
        point: dict[str, Any] = {"x": count, "distinct": in_step}
        point |= {"per_step_s": spread(steps), "tokens": tokens}
        for mode in yardsticks:
            f = 1 - statistics.median(frozen) / statistics.median(naive[mode])
            r = measured[mode][0]["tokens"] * factor / tokens
            point[f"speedup_vs_{mode}"] = paired_ratio(naive[mode], steps)
            point[f"bound_vs_{mode}"] = amdahl(f, r)
        points.append(point)
    best = f"speedup_vs_{yardsticks[-1]}"
    curve = [(point["distinct"], point[best]["median"]) for point in points]
    return {
        "points": points,
        "frozen_s": spread(frozen),
        "naive_s": {mode: spread(steps) for mode, steps in naive.items()},
        "stops_paying": {str(limit): crossing(curve, limit) for limit in (2.0, 1.1)},
    }


def crossing(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """Return where a falling curve crosses `limit`; None where it does not.

    On straight lines between its points in the logarithms of both axes.
    """
    for (x, y), (x_next, y_next) in itertools.pairwise(points):
        if y >= limit > y_next:
            share = (np.log(y) - np.log(limit)) / (np.log(y) - np.log(y_next))
            return float(np.exp(np.log(x) + share * (np.log(x_next) - np.log(x))))
    return None


def by_length(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the length of its 21 strings."""
    longest = 2 * max(size.lengths)
    made = [
        string
        for low in size.lengths
        for string in made_strings(60, low, (max(1, low // 4), max(2, low // 2)), longest)
    ]
    make_setting(folder, size.small, 24, list(dict.fromkeys(made)), size.overrides)
    lengths = open_cache(folder / "cache.zarr").strings("polymer").tokens.lengths
    spec = {
        "folder": str(folder),
        "precision": precision,
        "naive_rows": size.small_naive_rows,
        "overrides": size.overrides,
        "mode": "naive_longest",
    }
    ours = Stepper(folder, "per_step", precision, size.rows, None, size.overrides)
    turns: dict[str, Callable[[], float]] = {}
    for wanted in size.lengths:
        nearest = (lengths - wanted).abs().argsort()[:NUM_STRINGS]
        draw = partial(_drawn_of, nearest)
        turns[f"naive {wanted}"] = partial(_extended_turn, Turn(spec, draw), size.rows)
        batch = batch_of(ours.cache, size.rows, draw(size.rows))
        turns[f"ours {wanted}"] = partial(ours.step, batch)
        turns[f"ours {wanted}"]()
    measured = interleaved(turns, size.rounds, tell)
    points = []
    for wanted in size.lengths:
        naive, own = measured[f"naive {wanted}"], measured[f"ours {wanted}"]
        steps = {"per_step_s": spread(own), "naive_longest_s": spread(naive)}
        ratio = paired_ratio(naive, own)
        points.append({"x": wanted, **steps, "speedup_vs_naive_longest": ratio})
    return {"points": points, "axis": "tokens of a string", "encoder": size.small}


def _drawn_of(chosen: Int[Tensor, " S"], num_rows: int) -> Int[Tensor, " B"]:
    """Return string ids of rows drawn from some strings."""
    return chosen[draw_ids(num_rows, len(chosen), "uniform")]


def _extended_turn(turn: Turn, num_rows: int) -> float:
    """Return the seconds of a naive step of all rows."""
    return extended(turn(None)["seconds"], num_rows)[0]


def by_micro_batch(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the rows of a micro-batch.

    Once per step against torch.unique in each micro-batch.
    """
    make_setting(folder, size.small, 24, overrides=size.overrides)
    turns: dict[str, Callable[[], float]] = {}
    for rows in size.micro:
        for mode in ("per_step", "per_microbatch"):
            stepper = Stepper(folder, mode, precision, size.rows, rows, size.overrides)
            batch = batch_of(stepper.cache, size.rows)
            turns[f"{mode} {rows}"] = partial(stepper.step, batch)
            turns[f"{mode} {rows}"]()
    measured = interleaved(turns, size.rounds, tell)
    points = []
    for rows in size.micro:
        ours, other = (measured[f"{mode} {rows}"] for mode in ("per_step", "per_microbatch"))
        steps = {"per_step_s": spread(ours), "per_microbatch_s": spread(other)}
        ratio = paired_ratio(other, ours)
        points.append({"x": rows, **steps, "speedup_vs_per_microbatch": ratio})
    return {"points": points, "axis": "rows of a micro-batch", "encoder": size.small}


def by_ranks(folder: Path, size: Size, precision: str) -> dict[str, Any]:
    """Return the step's time against the number of ranks on this machine, whose cores they share.

    By the deepspeed launcher.
    """
    make_setting(folder, size.small, 24, overrides=size.overrides)
    points = []
    for ranks in size.ranks:
        tell(f"now measuring {ranks} rank(s)")
        output = folder / f"ranks{ranks}.json"
        request = {
            "folder": str(folder),
            "precision": precision,
            "rows": size.rows,
            "rounds": size.rounds,
            "overrides": size.overrides,
            "output": str(output),
        }
        launcher = ("-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks))
        module = ("--module", "benchmarks.harness.ranks", json.dumps(request))
        run_python(*launcher, *module, defaults={"DS_ACCELERATOR": "cpu"})
        measured = json.loads(output.read_text())
        steps = {f"{mode}_s": spread(own) for mode, own in measured.items()}
        ratio = paired_ratio(measured["per_microbatch"], measured["per_step"])
        points.append({"x": ranks, **steps, "speedup_vs_per_microbatch": ratio})
    return {"points": points, "axis": "ranks", "encoder": size.small}
