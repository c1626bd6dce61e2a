"""Is the reward fooled by a policy that looks for its weak spots? On the reference cohort, whose
outcome model says what each design is truly worth.

An ensemble is trained while patients are left out, or polymers, and then designs for all patients:
with all polymers, and with those alone that it never saw: test strings, of which none has trained,
chosen an epoch, or measured an error. PPO and random search with as many calls of the reward look
for the greatest reward, plain and pessimistic; what each finds is promised a reward by the model,
and has a true one by the outcome model without noise. A promise is kept where the true reward is as
large. The environment's steps per second are measured on a run of one network. Each result is
written as it is found: a split that `--only` leaves out keeps what it has.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from benchmarks.harness.cells import Column, Table
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.harness.timing import interleaved, spread
from benchmarks.harness.workers import run_python
from benchmarks.studies.policy_worth import Found, judged, random_search
from embedcache.cache.reader import open_cache
from embedcache.config.split import SPLITS as SPLITS_OF_ROWS
from fusionnet import RewardModel
from fusionnet.design.space import Designs
from fusionnet.experiment import load_experiment
from fusionnet.rl.environment import FormulationVectorEnv
from fusionnet.rl.ppo import designs_by, train_policy
from fusionnet.rl.problem import DesignProblem, design_problem
from fusionnet.train.runlog import write_json
from jobs.cohort.generate import OUTCOME_COLUMNS

MEMBERS = 8
PESSIMISM = (0.0, 1.0, 2.0)
PROMISED = 0.95
SPLITS = {"patients": "group", "polymers": "leave_strings_out"}
ALL, NEW = "all", "never seen"
STEPS_ENVS = (1, 64, 1024, 4096)
REWARD = {  # the specification's (section 10), of probabilities
    "terms": [
        {"task": "delta_ef_pct", "weight": 0.5},
        {"task": "is_optimal", "weight": 0.3},
        {"task": "safety", "weight": 0.2},
    ],
    "penalties": [
        {"task": "toxicity", "above": 0.15, "penalty": 1.0},
        {"task": "integrity", "below": 0.8, "penalty": 0.5},
    ],
}


KINDS = ("split", "materials", "pessimism", "search")


def main(words: list[str]) -> None:
    """Train, search, and write benchmarks/results/policy.json, .md and .png."""
    options = parser("policy", __doc__ or "")
    encoder = "a model folder, such as jobs.make_encoder writes"
    options.add_argument("--encoder", type=Path, required=True, help=encoder)
    options.add_argument("--only", nargs="+", choices=SPLITS, default=list(SPLITS))
    options.add_argument("--steps", type=int, default=100_000, help="calls of the reward")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the searches")
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args(words)
    torch.set_num_threads(arguments.threads)
    steps = 4096 if arguments.quick else arguments.steps
    output = output_path("policy", arguments)
    found = {**stamp(), "quick": arguments.quick, "steps": steps, "members": MEMBERS}
    found |= {"cells": [], "speed": {}}
    if output.is_file():
        before, own = json.loads(output.read_text()), [SPLITS[name] for name in arguments.only]
        if before["steps"] != steps:
            raise SystemExit(f"{output} is of {before['steps']:,} steps: name another --json")
        found["cells"] = [cell for cell in before["cells"] if cell["split"] not in own]
        found["speed"] = before["speed"] if "patients" not in arguments.only else {}
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), arguments)
        if not found["speed"]:
            one = _trained(config, "patients", 1, arguments)
            found["speed"] = _speed(RewardModel.load(one), 3 if arguments.quick else 15)
        for split in arguments.only:
            model = RewardModel.load(_trained(config, split, MEMBERS, arguments))
            for pessimism in PESSIMISM:
                for seed in arguments.seeds[: 1 if arguments.quick else None]:
                    for materials in (ALL, NEW) if split == "polymers" else (ALL,):
                        found["cells"] += _searched(model, materials, pessimism, steps, seed)
                        write_json(output, found)
    publish(output, found, report)


def _config(place: Path, arguments: argparse.Namespace) -> Path:
    """Write the cohort and the config that the defaults give, without trees."""
    table, config = place / "table.parquet", place / "table.yaml"
    rows = str(50 if arguments.quick else 500)
    run_python("-m", "jobs.make_cohort", "--out", str(table), "--rows-per-patient", rows)
    data = load_experiment(REPOSITORY / "configs" / "stage1.yaml").data
    columns = [each.column for each in (*data.strings, *data.numeric, *data.categories)]
    own = pl.read_parquet(table, columns=["patient_id", *columns, *OUTCOME_COLUMNS])
    own.write_parquet(table)
    targets = [word for name in OUTCOME_COLUMNS for word in ("--target", name)]
    encoder = ("--encoder", str(arguments.encoder.resolve()))
    run_python("-m", "jobs.init_config", str(table), *targets, *encoder, "--out", str(config))
    values = yaml.safe_load(config.read_text())
    values["train"] |= {"cpu_threads": arguments.threads, "baselines": False}
    values["train"] |= {"epochs": 1} if arguments.quick else {}
    values |= {"blend": {"boosting": False}, "reward": REWARD}
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    return config


def _trained(config: Path, split: str, members: int, arguments: argparse.Namespace) -> Path:
    """Return a run on the cohort, of one network or an ensemble."""
    run = config.with_name(f"{split}_{members}")
    cache = config.with_name(f"{split}.zarr")
    given = ["--config", str(config), "--set", f"split.strategy={SPLITS[split]}"]
    given += ["--set", f"model.members={members}", "--set", f"run.dir={run}"]
    given += ["--set", f"cache.path={cache}"]
    if not cache.is_dir():
        run_python("-m", "jobs.build_cache", *given, shown=True)
    run_python("-m", "jobs.train", *given, shown=True)
    return run


def _searched(
    model: RewardModel, materials: str, pessimism: float, steps: int, seed: int
) -> list[dict[str, Any]]:
    """Return what each search finds for all patients, and what it is truly worth."""
    problem = design_problem(model, _table(model, materials), None, pessimism, "allow")
    env = FormulationVectorEnv(problem, num_envs=512)
    started = time.perf_counter()
    policy = train_policy(env, steps, seed)
    seconds = time.perf_counter() - started
    patients = np.arange(problem.num_patients)
    per_patient = steps // problem.num_patients
    searches = {
        "PPO": designs_by(policy, env, patients),
        "random search": random_search(problem, per_patient, seed),
    }
    cells = []
    for name, designs in searches.items():
        own = judged(model, problem, designs)
        split = model.run.config["split"]["strategy"]
        kind = {"split": split, "materials": materials}
        cells.append(kind | _cell(name, pessimism, seed, own))
        cells[-1]["new_materials"] = _share_of_new(model, problem, designs)
        cells[-1]["seconds"] = seconds if name == "PPO" else None
        cells[-1] |= {key: stamp()[key] for key in ("commit", "date")}
        kept = f"{cells[-1]['kept']:.1%} of {cells[-1]['promised']:.2f} kept"
        tell(f"{split}, {materials}, pessimism {pessimism:g}, seed {seed}, {name}: {kept}")
    return cells


def _table(model: RewardModel, materials: str) -> pl.DataFrame | None:
    """Return the rows whose materials may be chosen; None where that is all of the run's."""
    if materials == ALL:
        return None
    table = pl.read_parquet(model.run.data.path)
    return table.filter(pl.col("polymer_SMILES").is_in(_new_strings(model)))


def _new_strings(model: RewardModel) -> list[str]:
    """Return the polymers of test rows alone."""
    cache = open_cache(model.run.config["cache"]["path"])
    rows, ((name, _),) = cache.rows(), model.run.strings.items()
    tested = rows.split == SPLITS_OF_ROWS.index("test")
    new = set(rows.string_id[tested, 0]) - set(rows.string_id[~tested, 0])
    return [text for place, text in enumerate(cache.strings(name).text) if place in new]


def _share_of_new(model: RewardModel, problem: DesignProblem, designs: Designs) -> float:
    """Return the share of patients for whom a polymer of test rows alone was picked."""
    new = _new_strings(model)
    (texts,) = problem.space.texts.values()
    return float(np.mean([texts[material] in new for material in designs.material]))


def _cell(name: str, pessimism: float, seed: int, found: Found) -> dict[str, Any]:
    """Return what a search has found, over patients."""
    kept = found.true / found.promised
    return {
        "search": name,
        "pessimism": pessimism,
        "seed": seed,
        "promised": float(found.promised.mean()),
        "true": float(found.true.mean()),
        "kept": float(found.true.mean() / found.promised.mean()),
        "patients_kept": float((kept >= PROMISED).mean()),
        "worst_patient": float(kept.min()),
        "picked": len(np.unique(found.designs.material)),
    }


def _speed(model: RewardModel, rounds: int) -> dict[str, Any]:
    """Return the steps per second of random actions, by number of environments."""
    problem = design_problem(model)
    turns = {}
    for num_envs in STEPS_ENVS:
        env = FormulationVectorEnv(problem, num_envs)
        env.reset(seed=0)
        env.action_space.seed(0)
        turns[str(num_envs)] = _stepping(env, env.action_space.sample(), max(1, 4096 // num_envs))
    return {name: spread(rates) for name, rates in interleaved(turns, rounds).items()}


def _stepping(env: FormulationVectorEnv, action: Any, num_steps: int) -> Any:
    """Return a function that takes steps and returns how many there were per second."""

    def turn() -> float:
        started = time.perf_counter()
        for _ in range(min(num_steps, 256)):
            env.step(action)
        return min(num_steps, 256) * env.num_envs / (time.perf_counter() - started)

    return turn


def report(found: dict[str, Any]) -> Report:
    """Return what was promised and what was true, by search and pessimism."""
    cells = found["cells"]
    kinds = list(dict.fromkeys(tuple(cell[key] for key in KINDS) for cell in cells))
    rows = [_row(kind, cells) for kind in kinds]
    searches = [
        Column("split", "split"),
        Column("polymers to choose from", "materials"),
        Column("pessimism", "pessimism", "g"),
        Column("search", "search"),
        Column("promised", "promised", ".3f"),
        Column("true", "true", ".3f"),
        Column("true / promised", "kept", ".1%"),
        Column("patients with 95 %", "patients_kept", ".1%"),
        Column("worst patient of any seed", "worst_patient", ".1%"),
        Column("materials picked", "picked", ".1f"),
        Column("patients with one never seen", "new_materials", ".1%"),
    ]
    speed = [
        Column("environments", "environments", ","),
        Column("steps/s", "median", ",.0f"),
        Column("20 %", "p20", ",.0f"),
        Column("80 %", "p80", ",.0f"),
    ]
    rates = [{"environments": int(name), **rate} for name, rate in found["speed"].items()]
    bars = {_label(row): row["kept"] for row in rows}
    seeds = len({cell["seed"] for cell in cells})
    return Report(
        "Is the reward fooled? What searches find, promised by the model and true",
        (
            f"An ensemble of {found['members']}, all defaults but no trees, on the reference"
            f" cohort; {found['steps']:,} calls of the reward for all patients together, means over"
            f" {seeds} seeds and all patients. Promised: the reward that was maximised, less"
            " k standard deviations: the members' spread, and of a polymer that never trained what"
            " the reward was off on validation polymers. True: the same formula of the outcome"
            " model without noise.",
        ),
        [Table(searches, rows), "Steps per second of the environment:", Table(speed, rates)],
        [Panel("true / promised", "share", bars, limits={"goal": PROMISED})],
    )


def _label(row: dict[str, Any]) -> str:
    """Return what a bar is called."""
    return f"{row['split']}, {row['materials']}, k = {row['pessimism']:g}, {row['search']}"


def _row(kind: tuple[Any, ...], cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over seeds of one kind of search."""
    own = [cell for cell in cells if tuple(cell[key] for key in KINDS) == kind]
    row = dict(zip(KINDS, kind, strict=True))
    for key in ("promised", "true", "kept", "patients_kept", "picked", "new_materials"):
        row[key] = float(np.mean([cell[key] for cell in own]))
    return row | {"worst_patient": min(cell["worst_patient"] for cell in own)}
