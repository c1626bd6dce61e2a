"""An ensemble of members that share one network (`model.members`): what a step and a prediction of
eight take, against one.

All networks of a setting take their steps in turns on the same rows, in one process. Eight
separate trainings take eight times a step of one, whatever the machine does, so they are not run.
Settings are small tables at the sizes that defaults give them, with a tiny encoder that is trained
or frozen, and Stage 1's sizes with polyBERT's architecture.
"""

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.cells import Column, Table, times, with_spread
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.setting import make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import Stepper, batch_of
from benchmarks.harness.timing import interleaved, paired_ratio, spread, timed
from embedcache.live.shared import vectors_of_all_columns
from fusionnet.model.forward import forward_rows

MEMBERS = 8
HOW = (
    "Steps take turns in rounds; medians, in brackets the 20th and 80th percentile, ratios taken"
    " within rounds. 'own layers' are those that each member computes for itself."
)
COLUMNS = (
    Column("setting", "setting"),
    Column("own layers", "own_layers"),
    Column("step of one, ms", "one_ms", with_spread),
    Column("step of eight", "step", lambda ratio: times(ratio["median"])),
    Column("predictions of eight", "predict", lambda ratio: times(ratio["median"])),
    Column("eight separate steps", lambda _: MEMBERS, times),
)


@dataclass(frozen=True)
class Setting:
    """One table's sizes."""

    name: str
    encoder: str
    mode: str
    precision: str
    batch_rows: int
    overrides: tuple[str, ...] = ()
    own_layers: tuple[int, ...] = (1, 2)


def small(name: str, mode: str, batch_rows: int, width: int) -> Setting:
    """Return a small table's setting, as `fusionnet.train.fitting` sizes it."""
    sizes = {
        "fusion_width": width,
        "num_layers": 2,
        "feedforward": 4 * width,
        "adapter_hidden": 3 * width // 4,
        "adapter_width": width // 2,
        "numeric_hidden": max(32, width // 8),
        "numeric_width": max(32, width // 4),
    }
    overrides = [f"model.{key}={value}" for key, value in sizes.items()]
    overrides += [f"tasks.{number}.head=[128]" for number in range(7)]
    return Setting(f"{name}, {mode}", "tiny", mode, "fp32", batch_rows, tuple(overrides))


FULL = (
    *(small("2,000 rows, width 128", mode, 64, 128) for mode in ("frozen", "per_step")),
    *(small("20,000 rows, width 256", mode, 512, 256) for mode in ("frozen", "per_step")),
    small("100,000 rows, width 256", "frozen", 4096, 256),
    *(
        Setting(f"Stage 1, {precision}", "polybert", "per_step", precision, 8192, (), (2, 4))
        for precision in ("fp32", "bf16")
    ),
)
QUICK = (small("2,000 rows, width 128", "frozen", 64, 128),)


def main(words: list[str]) -> None:
    """Measure all settings and write benchmarks/results/members.*."""
    options = parser("members", __doc__ or "")
    options.add_argument("--only", default="", help="settings whose name contains this")
    options.add_argument("--rounds", type=int, default=9, help="of the small tables; Stage 1: 2")
    arguments = options.parse_args(words)
    settings = [s for s in (QUICK if arguments.quick else FULL) if arguments.only in s.name]
    found: dict[str, Any] = {**stamp(), "quick": arguments.quick}
    found |= {"threads": torch.get_num_threads(), "rows": []}
    with tempfile.TemporaryDirectory() as name:
        for encoder in dict.fromkeys(each.encoder for each in settings):
            make_setting(Path(name) / encoder, encoder, 240)
            for setting in settings:
                if setting.encoder == encoder:
                    tell(f"now measuring {setting.name}")
                    rounds = 2 if encoder == "polybert" else arguments.rounds
                    found["rows"] += measure(Path(name) / encoder, setting, rounds)
    publish(output_path("members", arguments), found, report)


def measure(folder: Path, setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """Return the times of one member's network beside eight members', by their own layers."""

    def stepper(*model: str) -> Stepper:
        made = (*setting.overrides, *model)
        return Stepper(folder, setting.mode, setting.precision, setting.batch_rows, None, made)

    steppers = {0: stepper()}
    for own in setting.own_layers:
        steppers[own] = stepper(f"model.members={MEMBERS}", f"model.member_layers={own}")
    batch = batch_of(steppers[0].cache, setting.batch_rows)
    turns = {f"step {own}": (lambda each=each: each.step(batch)) for own, each in steppers.items()}
    turns |= {f"predict {own}": predicting(each) for own, each in steppers.items()}
    for turn in turns.values():
        turn()
    seconds = interleaved(turns, rounds)
    del steppers, turns
    gc.collect()
    return [
        {
            "setting": setting.name,
            "own_layers": own,
            "one_ms": spread([1000 * each for each in seconds["step 0"]]),
            "step": paired_ratio(seconds[f"step {own}"], seconds["step 0"]),
            "predict": paired_ratio(seconds[f"predict {own}"], seconds["predict 0"]),
        }
        for own in setting.own_layers
    ]


def predicting(stepper: Stepper) -> Callable[[], float]:
    """Return the call that evaluates a batch's rows, and returns its seconds."""
    batch = batch_of(stepper.cache, 4096)
    with torch.no_grad():
        tables = vectors_of_all_columns(stepper.trainer.sources)
    return lambda: timed(lambda: forward_rows(stepper.trainer.model, tables, batch, None))


def report(found: dict[str, Any]) -> Report:
    """Return what is to be read and seen."""
    rows: Sequence[dict[str, Any]] = found["rows"]
    bars = {f"{row['setting']}, {row['own_layers']} own": row["step"]["median"] for row in rows}
    panel = Panel("a step of eight members", "steps of one", bars, {"eight separate": MEMBERS})
    remarks = (f"{found['threads']} threads, tasks and rows of the reference cohort. {HOW}",)
    return Report(
        "Eight members against one",
        remarks,
        (Table(COLUMNS, rows),),
        (panel,),
    )
