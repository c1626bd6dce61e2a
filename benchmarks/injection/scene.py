"""The small project that is attacked: table, encoder, cache, run, predictions; a copy per case.

Paths in its configs are relative, so that a copy is a project of its own. It is made once, by the
commands themselves, in forks: the process that plays cases computes nothing, has no threads, and
can be forked.
"""

import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from benchmarks.injection.processes import NORMAL, Conditions, Done, Running, in_fork, start

CONFIG = "small.yaml"
CACHE = ("encoder", "table.parquet", "columns.yaml", CONFIG, "cache.zarr")
RUN = (*CACHE, "run", "new.parquet")
STRINGS = (
    *("[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C", "[*]CC([*])c1ccccc1", "[*]NCC(=O)[*]"),
    *("[*]c1ccc([*])cc1", "[*]CC([*])C(=O)OC"),
)
NEW_STRINGS = ("[*]CCCCO[*]", "[*]CC([*])F")  # in no row of the table
NUM_ROWS, NUM_GROUPS = 300, 12
COLUMNS: dict[str, Any] = {
    "data": {
        "path": "table.parquet",
        "strings": [{"name": "polymer", "column": "smiles"}],
        "numeric": [
            {"column": "x0", "low": -100, "high": 100, "feature_group": "first"},
            {"column": "x1", "unit": "kPa", "low": 0, "high": 1000},
            {"column": "x2", "transform": "log10", "low": 1e-6, "high": 1e6},
        ],
        "categories": [{"column": "kind"}],
        "group": "patient",
        "stratum": "real",
        "row_weight": {"column": "real", "equals": True, "weight": 5.0},
        "report_by": ["real", "patient"],
    },
    "split": {"folds": 3, "train_folds": 1, "validation_folds": 1, "stratify_by": "good"},
    "tasks": [
        {"name": "ef", "column": "outcome", "beta": 2.0, "head": [8], "goals": {"mae": 1.0}},
        {"name": "opt", "column": "good", "kind": "binary", "head": [8]},
        {"name": "aux", "column": "gappy", "loss": "mse", "weight": 0.3, "head": [8]},
    ],
    "reward": {
        "terms": [{"task": "ef", "weight": 0.5}, {"task": "opt", "weight": 0.3}],
        "penalties": [{"task": "aux", "above": 10.0, "penalty": 1.0}],
    },
}
SMALL: dict[str, Any] = {
    "extends": "columns.yaml",
    "encoder": {"source": "encoder", "pooling": "cls", "lora": {"r": 4}},
    "cache": {"path": "cache.zarr", "rows_per_chunk": 64, "chunks_per_shard": 2},
    "model": {
        **{"adapter_hidden": 16, "adapter_width": 16, "numeric_hidden": 8, "numeric_width": 8},
        **{"category_width": 4, "fusion_width": 16, "num_layers": 1, "num_heads": 2},
        **{"feedforward": 24, "feature_noise": {"first": 0.1}},
    },
    # by this rate the second of three epochs is the best
    "optim": {"lr": 0.05, "lr_encoder": 0.05, "warmup_epochs": 0.0, "total_steps": 12},
    "train": {
        **{"epochs": 3, "batch_rows": 40, "checkpoint_steps": 2, "cpu_threads": 1},
        "baselines": False,
    },
    "run": {"dir": "run", "name": "small"},
}


def table(seed: int = 0, num_rows: int = NUM_ROWS) -> pl.DataFrame:
    """Return a table whose outcome depends on its strings and numbers, with gaps in one label."""
    generator = np.random.default_rng(seed)
    string = generator.integers(0, len(STRINGS), num_rows)
    x = generator.normal(size=(num_rows, 3))
    group = np.arange(num_rows) % NUM_GROUPS
    outcome = 0.5 * string + x[:, 0] - 0.5 * x[:, 1] * (string % 2)
    outcome = outcome + 0.1 * generator.normal(size=num_rows)
    gappy = np.where(generator.random(num_rows) < 0.3, np.nan, 10 + 3 * x[:, 2])
    return pl.DataFrame(
        {
            "patient": [f"P{number:02d}" for number in group],
            "real": group % 2 == 0,
            "smiles": [STRINGS[number] for number in string],
            "kind": generator.choice(["a", "b", "c"], num_rows),
            "x0": x[:, 0],
            "x1": 50 + 10 * x[:, 1],
            "x2": 10 ** x[:, 2],
            "outcome": outcome,
            "good": outcome > 1.5,
            "gappy": pl.Series(gappy).fill_nan(None),
        }
    )


def new_rows() -> pl.DataFrame:
    """Return rows to predict, some of whose strings the run has never seen."""
    rows = table(seed=1, num_rows=24)
    strings = [*NEW_STRINGS, *rows["smiles"].to_list()[len(NEW_STRINGS) :]]
    return rows.with_columns(smiles=pl.Series(strings))


def more_rows(file: Path) -> None:
    """Write a second file of the table, with a string that the first does not have."""
    rows = table(seed=2, num_rows=60)
    strings = [NEW_STRINGS[0], *rows["smiles"].to_list()[1:]]
    rows.with_columns(smiles=pl.Series(strings)).write_parquet(file)


@dataclass(frozen=True)
class Scene:
    """The folder of one case; nobody else's files lie in it or in the one above."""

    folder: Path
    finished: Path  # the project with all its results, which is only read
    plant: Conditions = NORMAL  # what every command of this run meets, such as a planted fault

    def __truediv__(self, name: str) -> Path:
        """Return the path of a file of this case."""
        return self.folder / name

    def bring(self, names: Sequence[str]) -> None:
        """Copy files and folders of the finished project."""
        for name in names:
            source, target = self.finished / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)

    def start(
        self, *words: str, under: Conditions = NORMAL, ranks: Sequence[Mapping[str, str]] = ({},)
    ) -> Running:
        """Start a command in this folder."""
        if self.plant.plant is not None and under.plant is None:
            under = Conditions(**{**vars(under), "plant": self.plant.plant})
        return start(self.folder, words, under, ranks)

    def call(
        self, *words: str, under: Conditions = NORMAL, ranks: Sequence[Mapping[str, str]] = ({},)
    ) -> Done:
        """Return how a command ended."""
        return self.start(*words, under=under, ranks=ranks).wait()


def two_ranks() -> list[dict[str, str]]:
    """Return what torchrun puts into the environments of two ranks of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


BUILD = ("build_cache", "--config", CONFIG)
TRAIN = ("train", "--config", CONFIG)
EVALUATE = ("evaluate_model", "--run", "run", "--no-baselines")
PREDICT = (
    "predict",
    "--run",
    "run",
    "--input",
    "new.parquet",
    "--output",
    "out.parquet",
    "--reward",
)


class Traced(NamedTuple):
    """What an undisturbed command did: its operations on files, in order, and its seconds."""

    operations: list[str]
    seconds: float


def call_traced(
    scene: Scene, words: Sequence[str], ranks: Sequence[Mapping[str, str]] = ({},)
) -> Done:
    """Run a command that must end well, and keep what `traced` returns."""
    trace = scene.folder.with_name(f"{scene.folder.name}-{words[0]}.trace")
    started = time.monotonic()
    done = scene.call(*words, under=Conditions(trace=trace), ranks=ranks)
    assert done.code == 0, f"{done.command}: {done.code}\n{done.out}\n{done.err}"
    with trace.open("a") as stream:
        stream.write(f"\n{time.monotonic() - started}")
    return done


def traced(project: Path, command: str) -> Traced:
    """Return what the command did that made a part of a project."""
    lines = project.with_name(f"{project.name}-{command}.trace").read_text().splitlines()
    return Traced(lines[:-1], float(lines[-1]))


def prepare(folder: Path) -> Path:
    """Make the project in a folder, by its commands, and return it with all its results."""
    project = folder / "project"
    project.mkdir(parents=True)
    in_fork(lambda: _write_inputs(project))  # polars has threads, which a fork would wait for
    scene, trained = Scene(project, project), ""
    make_encoder = ("make_encoder", "--out", "encoder", "--size", "tiny")
    for words in (make_encoder, BUILD, TRAIN, EVALUATE, PREDICT):
        done = call_traced(scene, words)
        trained = done.out if words is TRAIN else trained
    assert "in epoch 2," in trained, f"the best epoch is to lie before the last: {trained}"
    os.chmod(folder, 0o755)
    return project


def _write_inputs(project: Path) -> None:
    """Write what a user brings: the table, its config, and rows to predict."""
    table().write_parquet(project / "table.parquet")
    new_rows().write_parquet(project / "new.parquet")
    (project / "columns.yaml").write_text(yaml.safe_dump(COLUMNS))
    (project / CONFIG).write_text(yaml.safe_dump(SMALL))
