"""Shared fixtures: everything runs offline, on the CPU, on a few threads."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from embedcache.build import build_cache
from embedcache.standin import write_standin
from jobs.experiment import load_experiment

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public tables, which lies beside the checkout on development machines only."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real public tables (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    write_standin(folder, "tiny", seed=0)
    return folder


TINY_STRINGS = [
    "[*]CC[*]",
    "[*]CCO[*]",
    "[*]CC([*])C",
    "[*]CC([*])c1ccccc1",
    "[*]c1ccc([*])[nH]1",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
    "[*]CC([*])C(=O)OCC[N+](C)(C)C",
]


def tiny_frame(num_rows: int = 420, num_groups: int = 12, seed: int = 0) -> pl.DataFrame:
    """Return a table with two string columns, three features, a category, and three targets, one with gaps."""
    rng = np.random.default_rng(seed)
    string = rng.integers(0, len(TINY_STRINGS), num_rows)
    x = rng.normal(size=(num_rows, 3))
    group = np.arange(num_rows) % num_groups
    outcome = 0.5 * string + x[:, 0] - 0.5 * x[:, 1] * (string % 2) + 0.1 * rng.normal(size=num_rows)
    gappy = np.where(rng.random(num_rows) < 0.3, np.nan, 10 + 3 * x[:, 2])
    return pl.DataFrame(
        {
            "patient": [f"P{g:02d}" for g in group],
            "real": group % 2 == 0,
            "smiles": [TINY_STRINGS[s] for s in string],
            "other": [TINY_STRINGS[s] for s in rng.integers(0, 3, num_rows)],
            "kind": rng.choice(["a", "b", "c"], num_rows),
            "x0": x[:, 0],
            "x1": 50 + 10 * x[:, 1],
            "x2": 10 ** x[:, 2],
            "outcome": outcome,
            "good": outcome > 1.5,
            "gappy": pl.Series(gappy).fill_nan(None),
        }
    )


def tiny_config(folder: Path, encoder: Path) -> dict[str, Any]:
    """Return the experiment of `tiny_frame` as the mapping that a YAML file would hold."""
    return {
        "data": {
            "path": str(folder / "table.parquet"),
            "strings": [{"name": "polymer", "column": "smiles"}, {"name": "partner", "column": "other"}],
            "numeric": [{"column": "x0"}, {"column": "x1", "low": 0, "high": 100}, {"column": "x2", "transform": "log10"}],
            "categories": [{"column": "kind"}],
            "group": "patient",
            "stratum": "real",
            "row_weight": {"column": "real", "equals": True, "weight": 5.0},
            "report_by": ["real", "patient"],
        },
        "split": {"folds": 3, "train_folds": 1, "validation_folds": 1, "stratify_by": "good"},
        "encoder": {"source": str(encoder), "pooling": "cls"},
        "cache": {"path": str(folder / "cache.zarr")},
        "tasks": [
            {"name": "ef", "column": "outcome", "beta": 2.0, "head": [16, 8]},
            {"name": "opt", "column": "good", "kind": "binary", "head": [8]},
            {"name": "aux", "column": "gappy", "loss": "mse", "weight": 0.3, "head": [8]},
        ],
        "model": {"adapter_hidden": 24, "adapter_width": 16, "numeric_hidden": 8, "numeric_width": 8, "category_width": 4, "fusion_width": 32,
                  "num_layers": 2, "num_heads": 4, "feedforward": 48},
        "train": {"epochs": 2, "batch_rows": 64},
        "run": {"dir": str(folder / "run"), "name": "tiny"},
    }  # fmt: skip


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A YAML file whose table lies beside it and whose cache is built."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_frame().write_parquet(folder / "table.parquet")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(folder, tiny_encoder_folder)))
    experiment = load_experiment(config)
    build_cache(experiment.data, experiment.targets, experiment.split, experiment.encoder, experiment.cache)
    return config
