"""How training grows: a cost model fitted on measured steps, checked on steps that the fit never
saw, and then carried to where nobody has measured.

Measured: steps on this machine, with rows, distinct strings, their lengths, micro-batches and mode
all varied. A third of them is held out; the errors on those are printed, and are what the fitted
part can be trusted to. Projected: everything about GPUs, from the rates of one table (`gpu_rates`).
It says where the limit moves, not what a cluster will show; how far off it is, one H100 says.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.costmodel import Architecture, check, features
from benchmarks.gpu_rates import GPU
from benchmarks.h100 import compared
from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.publish import output_path, parser, publish, tell
from benchmarks.harness.setting import PREFIX_LAYERS, SMALL_NETWORK, made_strings, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import MODES, Stepper, batch_of
from benchmarks.harness.timing import interleaved, spread
from benchmarks.projection import full_size, projections, reference_steps
from benchmarks.scaling_report import report
from embedcache.errors import UserError
from fusionnet.assemble import count_trainable
from fusionnet.rows.tensors import RowTable


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
MEASURED = ("naive_128", "naive_longest", "per_microbatch", "per_step", "prefix", "frozen")


class Case(NamedTuple):
    """One kind of step that is measured."""

    stepper: Stepper
    batch: RowTable
    mode: str
    micro_batches: int

    def turn(self) -> dict[str, Any]:
        """Take a step; return its seconds and what was counted."""
        seconds = self.stepper.step(self.batch)
        read = (self.stepper.tokens, self.stepper.token_pairs, self.stepper.passes)
        return {"seconds": seconds, "read": read}


def main(words: list[str]) -> None:
    """Measure, fit, check, project, and write benchmarks/results/scaling.json, .md and .png."""
    options = parser("scaling", __doc__ or "")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    anew = "measure nothing: project anew from the steps that the file already holds"
    options.add_argument("--project", action="store_true", help=anew)
    arguments = options.parse_args(words)
    output = output_path("scaling", arguments)
    if arguments.project:
        found = json.loads(_measured(output).read_text(encoding="utf-8"))
        now = stamp()
        made = {key: now[key] for key in ("command", "date")}
        found |= {**projected(Architecture(**found["architecture"])), "projected_by": made}
        publish(output, found, report)
        return
    size = QUICK if arguments.quick else FULL
    found = {
        **stamp(),
        "quick": arguments.quick,
        "precision": arguments.precision,
        "encoder": size.encoder,
    }
    with tempfile.TemporaryDirectory() as folder:
        architecture, cases = measure(Path(folder), size, arguments.precision)
    found |= {"architecture": asdict(architecture), **check(cases), **projected(architecture)}
    publish(output, found, report)


def _measured(output: Path) -> Path:
    """Return the file whose steps are projected anew."""
    if not output.is_file():
        raise UserError(f"{output} holds no measured steps; run it without --project first")
    return output


def projected(measured: Architecture) -> dict[str, Any]:
    """Return what is projected, what that takes for granted, and how far off it is."""
    architecture = full_size(measured)
    return {
        "assumed": {name: asdict(assumption) for name, assumption in GPU.items()},
        "steps": reference_steps(architecture),
        "compared": compared(architecture),
        "projected": projections(architecture),
    }


def measure(folder: Path, size: Size, precision: str) -> tuple[Architecture, list[dict[str, Any]]]:
    """Return the architecture, and per step what was counted and how long it took."""
    tell("now making the setting and comparing gradients")
    strings = [
        *made_strings(size.distinct[-1], 1, (3, 8)),
        *made_strings(size.distinct[-1], 2, (16, 24)),
    ]
    make_setting(folder, size.encoder, 24, strings, size.overrides)
    gradient_errors(folder, overrides=size.overrides)
    cases: dict[str, Case] = {}
    for mode, micro_batches in product(MEASURED, size.micro_batches):
        tell(f"now taking a first step of {mode}, {micro_batches} micro-batches")
        stepper = Stepper(folder, mode, precision, micro_batches, 1, size.overrides)
        fresh = _cases(stepper, size, mode, micro_batches)
        next(reversed(fresh.values())).turn()
        cases |= fresh
    turns = {name: case.turn for name, case in cases.items()}
    measured = interleaved(turns, size.rounds, tell)
    # of the first mode, which adapts all layers
    architecture = architecture_of(next(iter(cases.values())).stepper)
    first = PREFIX_LAYERS[size.encoder]
    return architecture, [
        _counted(name, case, measured[name], first, architecture) for name, case in cases.items()
    ]


def _cases(stepper: Stepper, size: Size, mode: str, micro_batches: int) -> dict[str, Case]:
    """Return a stepper's steps by name; lengths, numbers of strings and rows vary independently."""
    order = stepper.cache.strings("polymer").tokens.lengths.argsort()
    halves = {"short": order[: len(order) // 2], "long": order[len(order) // 2 :]}
    row_counts = size.naive_rows if MODES[mode].is_naive else size.rows
    distinct_counts = size.distinct[:1] if mode == "frozen" else size.distinct
    cases = {}
    for index, (rows, distinct) in enumerate(product(row_counts, distinct_counts)):
        kind = ("short", "long")[(index + index // len(size.distinct)) % 2]
        chosen = halves[kind][:distinct]
        drawn = np.random.default_rng(index).integers(0, len(chosen), rows)
        batch = batch_of(stepper.cache, rows, chosen[torch.from_numpy(drawn)])
        name = f"{mode} {rows} rows, {distinct} {kind} strings, {micro_batches} micro-batches"
        cases[name] = Case(stepper, batch, mode, micro_batches)
    return cases


def _counted(
    name: str, case: Case, turns: list[dict[str, Any]], first: int, architecture: Architecture
) -> dict[str, Any]:
    """Return a case's work and seconds; prefix mode runs the encoder's layers from `first` on."""
    layers = architecture.layers - (first if case.mode == "prefix" else 0)
    rows, read = case.batch.num_rows, turns[0]["read"]
    work = features(architecture, rows, *read, case.micro_batches, layers)
    seconds = spread([turn["seconds"] for turn in turns])
    return {"name": name, "mode": case.mode, "work": work, "seconds": seconds}


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
