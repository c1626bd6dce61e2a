"""A small table of the project's shape and the config that describes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.build.decide import Existing, build_cache
from embedcache.build.report import BuildReport
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.cache import CacheConfig
from embedcache.config.encoder import EncoderConfig
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.schema import parse_config

# the first two are one string
STRINGS = [
    "[*]CC[*]",
    "*CC*",
    "[*]CCO[*]",
    "[*]CC([*])C",
    "[*]CC([*])c1ccccc1",
    "[*]c1ccc([*])[nH]1",
]

DATA: dict[str, Any] = {
    "strings": [{"name": "polymer", "column": "smiles"}],
    "numeric": [
        {"column": "x", "unit": "mm", "low": -50, "high": 50},
        {"column": "y", "transform": "log10", "low": 0},
        {"column": "t", "transform": "inverse_kelvin", "unit": "degC", "high": 100},
        {"column": "flag"},
        {"column": "same"},
    ],
    "categories": [{"column": "kind", "values": ["c", "a", "b"]}],
    "group": "patient",
    "stratum": "real",
    "row_weight": {"column": "real", "equals": True, "weight": 5.0},
    "report_by": ["real", "site"],
}
TARGETS: list[dict[str, Any]] = [
    {"name": "ef", "column": "outcome", "low": -100, "high": 100},
    {"name": "opt", "column": "good", "kind": "binary"},
    {"name": "aux", "column": "auxiliary", "optional": True},
]
SPLIT = SplitConfig(folds=4, train_folds=2, validation_folds=1, stratify_by="good")


def small_frame(num_rows: int = 240, num_groups: int = 12, seed: int = 0) -> pl.DataFrame:
    """Return rows of `num_groups` patients, a third of them real, with gaps in the first target."""
    rng = np.random.default_rng(seed)
    group = np.arange(num_rows) % num_groups
    outcome: list[float | None] = (3.0 + rng.normal(size=num_rows)).tolist()
    outcome[::7] = [None] * len(outcome[::7])
    return pl.DataFrame(
        {
            "patient": [f"P{g:02d}" for g in group],
            "real": group % 3 == 0,
            "smiles": [STRINGS[k] for k in rng.integers(0, len(STRINGS), num_rows)],
            "kind": [("a", "b", "c")[k] for k in rng.integers(0, 3, num_rows)],
            "site": rng.integers(1, 4, num_rows),
            "x": rng.normal(size=num_rows),
            "y": 10 ** rng.normal(size=num_rows),
            "t": rng.uniform(-20, 80, num_rows),
            "flag": rng.random(num_rows) < 0.5,
            "same": np.full(num_rows, 0.1),
            "outcome": outcome,
            "good": rng.random(num_rows) < 0.4,
        }
    )


def write_table(frame: pl.DataFrame, file: Path) -> Path:
    """Write a frame as the file's suffix says."""
    if file.suffix == ".csv":
        frame.write_csv(file)
    else:
        frame.write_parquet(file, row_group_size=100)
    return file


@dataclass(frozen=True)
class Study:
    """A table on disk with everything that a build needs."""

    data: DataConfig
    targets: tuple[TargetColumn, ...]
    split: SplitConfig
    encoder: EncoderConfig
    cache: CacheConfig

    def build(self, overwrite: bool = False, append: bool = False) -> BuildReport:
        existing = Existing.OVERWRITE if overwrite else Existing.APPEND if append else Existing.KEEP
        return build_cache(*self.arguments(), existing)

    def open(self) -> Cache:
        return open_cache(self.cache.path)

    def arguments(self) -> tuple[Any, ...]:
        return (self.data, self.targets, self.split, self.encoder, self.cache)

    def but(
        self,
        split: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        **data: Any,
    ) -> "Study":
        """Return the study with other settings."""
        return replace(
            self,
            data=parse_config(DataConfig, {**self.data.model_dump(), **data}, "test"),
            split=parse_config(SplitConfig, {**self.split.model_dump(), **(split or {})}, "test"),
            encoder=parse_config(
                EncoderConfig, {**self.encoder.model_dump(), **(encoder or {})}, "test"
            ),
        )


StudyMaker = Callable[..., Study]


@pytest.fixture(scope="session")
def frame_of() -> Callable[..., pl.DataFrame]:
    return small_frame


@pytest.fixture(scope="session")
def make_study(tiny_encoder_folder: Path) -> StudyMaker:
    def make(
        folder: Path,
        frame: pl.DataFrame | None = None,
        file: str = "table.parquet",
        targets: list[dict[str, Any]] | None = None,
        **data: Any,
    ) -> Study:
        path = write_table(small_frame() if frame is None else frame, folder / file)
        return Study(
            data=parse_config(DataConfig, {"path": str(path), **DATA, **data}, "test"),
            targets=tuple(
                parse_config(TargetColumn, target, "test") for target in targets or TARGETS
            ),
            split=SPLIT,
            encoder=EncoderConfig(source=str(tiny_encoder_folder)),
            cache=CacheConfig(
                path=str(folder / "cache.zarr"), rows_per_chunk=28, chunks_per_shard=4
            ),
        )

    return make


@pytest.fixture(scope="session")
def built_study(make_study: StudyMaker, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose cache is built; tests read it and copy it, never change it."""
    study = make_study(tmp_path_factory.mktemp("built"))
    study.build()
    return study
