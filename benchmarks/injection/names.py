"""Odd names that are no mistakes: of columns, values, units; they go all the way from the table to
the report.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import yaml

from benchmarks.injection.cases import Case, Outcome, judged, worst
from benchmarks.injection.compare import not_finite, written
from benchmarks.injection.processes import in_fork
from benchmarks.injection.scene import BUILD, COLUMNS, EVALUATE, PREDICT, SMALL, TRAIN, Scene

ODD_NAMES = (
    *("dose mg/kg", "../../x", "a\\b", "$5^$", "$0-$5", "<script>alert(1)</script>", "x" * 300),
    *("\U0001f600", "a b", "row:", "number:x", "group", "target:ef", "predicted_outcome", "%s{}"),
    *("#", "é", "'", '"', "a,b", "a\nb", ".", "..", "CON", "nul.txt", "-x", "*", "?", "|"),
    *("\u202eabc", "\\frac"),
)


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield names, each in one role."""
    for name in ODD_NAMES:
        role = random.choice(list(ROLES))
        label = f"the name {name!r:.40} for {role}"
        yield Case("odd name", label, partial(_play_name, name, role))


def _renamed(config: Any, old: str, new: str) -> Any:
    """Return a config in which a column has another name."""
    if isinstance(config, dict):
        return {key: _renamed(value, old, new) for key, value in config.items()}
    if isinstance(config, list):
        return [_renamed(value, old, new) for value in config]
    return new if config == old else config


ROLES: dict[str, str] = {
    "the string column": "smiles",
    "a number": "x0",
    "the category column": "kind",
    "the group": "patient",
    "the stratum and a facet": "real",
    "a target": "outcome",
    "a binary target": "good",
    "values of a category": "",
    "values of a facet": "",
    "a unit": "",
    "a feature group": "",
}


def _play_name(name: str, role: str, scene: Scene) -> Outcome:
    """Take an odd name all the way: build, train, evaluate, predict."""
    columns, small = COLUMNS, SMALL
    old = ROLES[role]
    if old:
        columns = _renamed(columns, old, name)
    elif role == "a unit":
        columns = _renamed(columns, "kPa", name)
    elif role == "a feature group":
        columns = _renamed(columns, "first", name)
        small = {**small, "model": {**small["model"], "feature_noise": {name: 0.1}}}

    def write() -> bool:
        for file in ("table.parquet", "new.parquet"):
            frame = pl.read_parquet(scene.finished / file)
            if old:
                frame = frame.rename({old: name})
            elif role == "values of a category":
                frame = frame.with_columns(pl.col("kind").replace("a", name))
            elif role == "values of a facet":
                frame = frame.with_columns(pl.col("patient").replace("P00", name))
            frame.write_parquet(scene / file)
        return True

    scene.bring(("encoder",))
    in_fork(write)
    (scene / "columns.yaml").write_text(yaml.safe_dump(columns))
    (scene / "small.yaml").write_text(
        yaml.safe_dump({**small, "train": {"epochs": 1, "batch_rows": 100}})
    )
    outcomes = []
    for words in (BUILD, TRAIN, EVALUATE, PREDICT):
        done = scene.call(*words)
        outcomes.append(judged(done, list))
        if done.code != 0:
            break
    else:
        outcomes.append(judged(done, partial(_reported, name, scene)))
    return worst(*outcomes)


def _reported(name: str, scene: Scene) -> list[str]:
    """Return what is wrong with the end of the way: metrics, page, files outside of the folder."""
    lines = not_finite(written(scene / "run" / "metrics.json"))
    page = (scene / "run" / "report.html").read_text()
    if "<script>alert" in page:
        lines.append("the report runs a script of the table")
    known = {
        "table.parquet",
        "new.parquet",
        "columns.yaml",
        "small.yaml",
        "encoder",
        "cache.zarr",
        "cache.zarr.lock",
        "run",
        "out.parquet",
    }
    strays = {path.name for path in scene.folder.iterdir()} - known
    return lines + [f"stray {stray}" for stray in sorted(strays) if not stray.startswith(".")]
