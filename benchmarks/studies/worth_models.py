"""The tables of `worth`, how each is split, and how a model's errors on its test rows are found.

Ours is what `fusionnet init` writes, of which only the split and the encoder are set. Baselines and
rivals read the same cache, so the same rows.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from benchmarks.harness.workers import run_python
from benchmarks.rivals import RIVALS, predictions_of
from benchmarks.studies.defaults import ORACLE, cohort_table, given_table
from embedcache.build.decide import Existing
from embedcache.build.rotation import rotated
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.columns import StringColumn
from embedcache.config.split import SPLITS
from embedcache.errors import UserError
from embedcache.table.psmiles import prepare_string
from fusionnet.evaluation.baselines import BASELINES, BOOSTING, STRING_MEAN
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.metrics import regression_metrics
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.tokens import Tokens

OURS, FINGERPRINTS = "ours", "boosting, Morgan fingerprints"
SHOWN = (STRING_MEAN, BOOSTING, FINGERPRINTS)
FOLDS = {"folds": 10, "train_folds": 7, "validation_folds": 1}  # five times two folds test
COHORT_ROWS = 30_000
# Each part of the defaults is taken away, then given back alone. An ensemble is no default: added.
WITHOUT_TREES, ONE_MEMBER = "blend.boosting=false", "model.members=1"
WITHOUT_ENCODER = "encoder.mode=none"
LINEAR, WITHOUT_FEATURES = "model.numeric=linear", "data.strings.*.features=[]"
ABLATIONS = {
    "network, vectors alone": (WITHOUT_TREES, ONE_MEMBER, LINEAR, WITHOUT_FEATURES),
    "and features of strings": (WITHOUT_TREES, ONE_MEMBER, LINEAR),
    "and numeric embeddings": (WITHOUT_TREES, ONE_MEMBER, WITHOUT_FEATURES),
    "and members": (WITHOUT_TREES, "model.members=8", LINEAR, WITHOUT_FEATURES),
    "and boosting": (ONE_MEMBER, LINEAR, WITHOUT_FEATURES),
    "all but boosting": (WITHOUT_TREES,),
    "no language model": (WITHOUT_ENCODER,),
}


class Setting(NamedTuple):
    """A table, and how it is split."""

    make: Callable[[Path, argparse.Namespace], str]
    split: dict[str, Any]
    has_folds: bool
    needs: str = ""  # the option that names its table


ELECTROLYTE, EGC = (
    given_table("electrolyte", "conductivity"),
    given_table("egc", "value"),
)
TASKS = {
    "electrolyte_random": Setting(ELECTROLYTE, {"strategy": "random"}, True, "electrolyte"),
    "electrolyte_by_polymer": Setting(
        ELECTROLYTE, {"strategy": "leave_strings_out"}, True, "electrolyte"
    ),
    "cohort_patients": Setting(cohort_table(COHORT_ROWS), {"strategy": "group"}, False),
    "cohort_strings": Setting(cohort_table(COHORT_ROWS), {"strategy": "leave_strings_out"}, False),
    "egc": Setting(EGC, {"strategy": "random"}, True, "egc"),
}


def is_ours(name: str) -> bool:
    """Return whether a model is ours, whole or in part."""
    return name == OURS or name in ABLATIONS


def config_of(setting: Setting, place: Path, seed: int, arguments: argparse.Namespace) -> Path:
    """Write the table and the config that the defaults give, with this split and seed."""
    table, config = place / "table.parquet", place / "table.yaml"
    if setting.needs and getattr(arguments, setting.needs) is None:
        raise UserError(f"--{setting.needs} FILE says where that table is")
    target = setting.make(table, arguments)
    encoder = ["--encoder", str(arguments.encoder.resolve())]
    run_python(
        *("-m", "jobs.init_config", str(table), "--target", target, *encoder, "--out", str(config))
    )
    values = yaml.safe_load(config.read_text())
    values["split"] = {**FOLDS, **setting.split, "seed": seed}
    values.setdefault("train", {}).update(seed=seed, cpu_threads=arguments.threads)
    if arguments.quick:
        values["train"] |= {"epochs": 1}
    values["cache"], values["run"] = (
        {"path": str(place / "cache.zarr")},
        {"dir": str(place / "run")},
    )
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    leave_out_unreadable(table, load_experiment(config).data.strings, arguments.encoder)
    return config


def leave_out_unreadable(table: Path, columns: Sequence[StringColumn], encoder: Path) -> None:
    """Take the rows away that the encoder cannot read, which a build with it skips.

    So what is trained without it has the same rows, and the same splits.
    """
    tokens, frame = Tokens(str(encoder)), pl.read_parquet(table)
    for column in columns:
        texts = frame[column.column].drop_nulls().unique().to_list()
        prepared = {text: prepare_string(text, column) for text in texts}
        unreadable = tokens.unreadable(column, sorted(set(prepared.values())))
        left_out = [text for text in texts if prepared[text] in unreadable]
        frame = frame.filter(~pl.col(column.column).is_in(left_out).fill_null(value=False))
    frame.write_parquet(table)


def overrides(config: Path, changes: Sequence[str]) -> list[str]:
    """Return overrides in which a star stands for every string column."""
    num_strings = len(yaml.safe_load(config.read_text())["data"].get("strings", ()))
    return [
        change.replace("*", str(column))
        for change in changes
        for column in range(num_strings if "*" in change else 1)
    ]


def metrics_of_ours(
    setting: Setting,
    place: Path,
    config: Path,
    changes: Sequence[str],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Return the test metrics of our model, fold by fold."""
    given = ["--config", str(config)]
    for change in overrides(config, [*changes, *arguments.set]):
        given += ["--set", change]
    run = place / "run"
    run_python("-m", "jobs.build_cache", *given, "--overwrite", shown=True)
    if setting.has_folds:
        run_python(
            *("-m", "jobs.cross_validate", *given, "--overwrite", "--no-baselines"), shown=True
        )
        (written,) = run.glob("*metrics*.json")
        folds = json.loads(written.read_text())["folds"]
        (target,) = folds[0]["metrics"]
        return [fold["metrics"][target] for fold in folds]
    run_python("-m", "jobs.train", *given, "--overwrite", shown=True)
    oracle = ["--oracle", str(place / ORACLE)] if (place / ORACLE).is_file() else []
    words = ("-m", "jobs.evaluate_model", "--run", str(run), "--no-baselines", *oracle)
    run_python(*words, shown=True)
    metrics = json.loads((run / "metrics.json").read_text())
    (found,) = metrics["test"].values()
    for shares in metrics.get("oracle_share", {}).values():
        found["oracle_share"] = shares["r2"]
    return [found]


def views(setting: Setting, place: Path, config: Path) -> Iterator[Cache]:
    """Yield the cache in each rotation, built without a language model's vectors being read."""
    experiment: Experiment = load_experiment(config)
    build_experiment(experiment, Existing.KEEP)
    cache = open_cache(experiment.cache.path)
    if not setting.has_folds:
        yield cache
        return
    for rotation in experiment.split.plan().rotations:
        split = experiment.split.model_copy(update={"rotation": rotation})
        yield cache if rotation == 0 else rotated(cache, split)


def metrics_of_rival(
    model: str, cache: Cache, seed: int, arguments: argparse.Namespace
) -> dict[str, float | None]:
    """Return a baseline's or rival's metrics on the test rows."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    if model in BASELINES:
        predicted = BASELINES[model](cache, 0, seed)[test, 0]
    else:
        predicted = predictions_of(RIVALS[model], cache, seed, arguments.threads)
    return regression_metrics(rows.targets[test, 0], predicted)
