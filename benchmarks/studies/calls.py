"""Calls of the reward per second, at 1, 64 and 4,096 rows a call.

A policy calls its reward in an inner loop, with few rows. `reward(frame)` reads, checks and looks
up a polars frame; `rewards(frame)` has the parts and flags as well; `on_strings` knows its strings
beforehand and takes tensors. Networks have fresh weights, since speed does not depend on them:
Stage 1's, and one of the size that defaults give a table of 30,000 rows, alone and as eight
members, whose spread is pessimism's. Before anything is timed, all calls must give the same
rewards.

Calls take turns in rounds, on one of torch's threads. The time is the process's on all processors,
not the clock's, so that other work on the machine counts little: the calls per second of one
processor.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks.harness.cells import Column, Table, times, with_spread
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.setting import experiment_of, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, paired_ratio, spread
from benchmarks.studies.inference import write_run
from fusionnet import RewardModel
from fusionnet.rows.tensors import RowInputs

ROWS = (1, 64, 4_096)
WIDTH = 256
DEFAULTS = (
    *("model.fusion=mlp", "model.numeric=ple", "model.linear_skip=true", "model.num_layers=2"),
    *(f"model.fusion_width={WIDTH}", f"model.feedforward={4 * WIDTH}"),
    *(f"model.adapter_hidden={3 * WIDTH // 4}", f"model.adapter_width={WIDTH // 2}"),
    *("model.numeric_hidden=32", f"model.numeric_width={WIDTH // 4}"),
    *(f"tasks.{number}.head=[128]" for number in range(7)),
)
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "defaults": DEFAULTS,
    "defaults, 8 members": (*DEFAULTS, "model.members=8"),
    "Stage 1": (),
}
COLUMNS = (
    Column("network", "network"),
    Column("call", "name"),
    *(Column(f"calls/s of {rows:,}", f"{rows}.calls_per_s", with_spread) for rows in ROWS),
    Column(f"rows/s in calls of {ROWS[-1]:,}", lambda row: ROWS[-1] * _median(row, ROWS[-1])),
    *(Column(f"{rows:,}: beside reward(frame)", f"{rows}.beside.median", times) for rows in ROWS),
)


def main(words: list[str]) -> None:
    """Measure all networks and write benchmarks/results/calls.*."""
    arguments = parser("calls", __doc__ or "").parse_args(words)
    rounds = 3 if arguments.quick else 7
    torch.set_num_threads(1)
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    found |= {"rounds": rounds, "networks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell("now writing a cohort and its cache")
        make_setting(folder, "tiny", 200)
        for network, overrides in NETWORKS.items():
            if not arguments.quick or network == "defaults":
                tell(f"now measuring {network}")
                run = folder / network
                write_run(run, experiment_of(folder, "frozen", "fp32", overrides))
                found["networks"][network] = measure(run, folder / "cohort.parquet", rounds)
    publish(output_path("calls", arguments), found, report)


def measure(run: Path, cohort: Path, rounds: int) -> dict[str, Any]:
    """Return the calls per second of each way, by the rows of a call."""
    model, frame = RewardModel.load(run), pl.read_parquet(cohort)
    pessimism = 1.0 if model.run.recipe.model.members > 1 else 0.0
    rows = {num: frame.sample(num, seed=0) for num in ROWS}
    found: dict[str, Any] = {}
    for num, own in rows.items():
        calls = ways(model, own, pessimism)
        check(calls)
        repeats = max(1, 32 // num)  # in one turn
        turns = {name: partial(_seconds, call, repeats) for name, call in calls.items()}
        seconds = interleaved(turns, rounds)
        for name, each in seconds.items():
            rates = spread([repeats / turn for turn in each])
            beside = paired_ratio(seconds["reward(frame)"], each)
            found.setdefault(name, {})[str(num)] = {"calls_per_s": rates, "beside": beside}
    return found


def ways(
    model: RewardModel, frame: pl.DataFrame, pessimism: float
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the calls that reward a frame's rows, by their names."""
    texts = {name: list(known) for name, known in model.run.strings.items()}
    _, inputs = model.inputs(frame)
    given = _with_ids(inputs, model, frame, texts)
    flagging, bare = (model.on_strings(texts, pessimism, unseen) for unseen in ("flag", "allow"))
    return {
        "reward(frame)": lambda: model.reward(frame, pessimism),
        "rewards(frame)": lambda: model.rewards(frame, pessimism).total,
        "on_strings": lambda: flagging(given).total,
        "on_strings, unseen: allow": lambda: bare(given).total,
    }


def _with_ids(
    inputs: RowInputs, model: RewardModel, frame: pl.DataFrame, texts: Mapping[str, list[str]]
) -> RowInputs:
    """Return rows whose strings are numbered as `texts` has them."""
    columns = []
    for column in model.run.data.strings:
        place = {text: number for number, text in enumerate(texts[column.name])}
        columns.append(torch.tensor([place[text] for text in frame[column.column]]))
    return replace(inputs, string_id=torch.stack(columns, dim=1))


def check(calls: Mapping[str, Callable[[], torch.Tensor]]) -> None:
    """Raise AssertionError where two ways do not give the same rewards; nothing is timed then."""
    wanted, *others = (call() for call in calls.values())
    for other in others:
        torch.testing.assert_close(other, wanted, rtol=1e-4, atol=1e-4)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the processors' seconds that some calls take."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return time.process_time() - started


def _median(row: Mapping[str, Any], num_rows: int) -> float:
    return float(row[str(num_rows)]["calls_per_s"]["median"])


def report(found: dict[str, Any]) -> Report:
    """Return the rates of all ways, and a picture of the rows per second at the most rows."""
    rows = [
        {"network": network, "name": name, **rates}
        for network, ways_of in found["networks"].items()
        for name, rates in ways_of.items()
    ]
    panels = [
        Panel(
            f"{num:,} row{'s' if num > 1 else ''} a call",
            "calls per second",
            {f"{row['network']}: {row['name']}": _median(row, num) for row in rows},
            ours={f"{row['network']}: {row['name']}" for row in rows if "on_str" in row["name"]},
        )
        for num in ROWS
    ]
    how = (
        f"One thread, processor time; median of {found['rounds']} rounds of all calls (20 to 80 %),"
        " 32 calls of one row in each; ratios taken within rounds. Eight members with pessimism 1."
    )
    return Report("Calls of the reward", (how,), (Table(COLUMNS, rows),), panels)
