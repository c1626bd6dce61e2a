"""Fixtures of all tests: processes, and the tiny experiment with its encoder, cache and runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import budgets  # noqa: F401  (hypothesis profiles)
import numpy as np
import polars as pl
import power  # noqa: F401  (none is cut)
import pytest
import torch
import yaml
from forks import Forks

from embedcache.cache.reader import open_cache
from embedcache.encoder.standin import write_standin
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.listing import begin_listing, list_files
from fusionnet.train.checkpoint import link_checkpoint, save_checkpoint
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.recipes import recipe_of


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as in forks: equal bits


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Forks:
    """Processes without the seconds that their imports take."""
    return Forks(tmp_path_factory.mktemp("forks"))


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
    """Return a table with two string columns, three features, a category, and three targets, one
    with gaps.
    """
    rng = np.random.default_rng(seed)
    string = rng.integers(0, len(TINY_STRINGS), num_rows)
    x = rng.normal(size=(num_rows, 3))
    group = np.arange(num_rows) % num_groups
    outcome = (
        0.5 * string + x[:, 0] - 0.5 * x[:, 1] * (string % 2) + 0.1 * rng.normal(size=num_rows)
    )
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
            "strings": [
                {"name": "polymer", "column": "smiles"},
                {"name": "partner", "column": "other"},
            ],
            "numeric": [
                {"column": "x0", "feature_group": "first"},
                {"column": "x1", "low": 0, "high": 100},
                {"column": "x2", "transform": "log10"},
            ],
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
        "model": {
            "adapter_hidden": 24,
            "adapter_width": 16,
            "numeric_hidden": 8,
            "numeric_width": 8,
            "category_width": 4,
            "fusion_width": 32,
            "num_layers": 2,
            "num_heads": 4,
            "feedforward": 48,
        },
        "train": {
            **{"epochs": 2, "batch_rows": 64, "cpu_threads": 1},
            **{"prove": 0, "baselines": False},
        },
        "calibration": {"probabilities": "none"},  # as the network has them
        "run": {"dir": str(folder / "run"), "name": "tiny"},
    }


@pytest.fixture(scope="session")
def tiny_experiment(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    """A YAML file whose table lies beside it and whose cache is built."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_frame().write_parquet(folder / "table.parquet")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(folder, tiny_encoder_folder)))
    experiment = load_experiment(config)
    build_experiment(experiment)
    return config


RunMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(tiny_experiment: Path) -> RunMaker:
    """Make run folders as training leaves them, in a second and without DeepSpeed; all weights are
    moved, LoRA's B too, so that none is the base model's.
    """

    def make(folder: Path, seed: int = 7, **changes: Any) -> Path:
        folder.mkdir(parents=True)
        config = folder.with_name(f"{folder.name}.yaml")
        config.write_text(yaml.safe_dump({**changes, "extends": str(tiny_experiment)}))
        experiment = load_experiment(config, [f"run.dir={folder}"])
        cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, cache)
        model = build_model(recipe, cache.layout, cache.scaling)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(
                        torch.randn(parameter.shape, generator=generator),
                        alpha=0.1 if "lora_" in name else 0.2,
                    )
        names = [spec.name for spec in cache.layout.strings]
        with model.autocast():
            vectors = {
                name: source.vectors_of_all_strings().float()
                for name, source in zip(names, make_sources(model, recipe, cache), strict=True)
            }
        records = [made_record(epoch) for epoch in (1, 2)]
        run_id = f"{seed:016x}"
        content = {
            "run_id": run_id,
            "epoch": 2,
            "step": 0,
            "epoch_losses": None,
            "epoch_seconds": 0.0,
            "gradient_norm": 0.0,
            "order": "resident",
            "model_state_dict": model.trainable_state(),
            "optimizer_state_dict": {},
            "scheduler_state_dict": {"step": 4},
            "loss_module_state_dict": model.loss.state_dict(),
            "best_val_loss": records[-1]["val_loss"],
            "metrics": records[-1],
            "records": records,
            "config": experiment.model_dump(mode="json"),
            "layout": cache.layout.model_dump_json(),
            "scaling": cache.scaling.to_json(),
            "strings": {name: cache.strings(name).text for name in names},
            "identity": dict(cache.identity.entries),
            "vectors": vectors,
            "saving": "",
        }
        begin_listing(folder, "tiny", run_id)
        moments = [f"tiny_{moment}.pt" for moment in ("last", "best", "final")]
        list_files(folder, run_id, ["tiny_config.yaml", *moments])
        save_checkpoint(folder / "tiny_last.pt", content)
        for moment in ("best", "final"):
            link_checkpoint(folder / "tiny_last.pt", folder / f"tiny_{moment}.pt")
        (folder / "tiny_config.yaml").write_text(experiment.to_yaml())
        return folder

    return make


def made_record(epoch: int) -> dict[str, Any]:
    """Return a log record of an epoch with the keys that training writes."""
    scores = {"mae": 1.0 / epoch, "rmse": 1.5 / epoch, "r2": 1 - 0.5 / epoch, "spearman": 0.5}
    binary = {
        "accuracy": 0.9,
        "auroc": 1 - 0.2 / epoch,
        "f1": None,
        "recall": 0.5,
        "precision": None,
        "auprc": 0.5,
        "balanced_accuracy": 0.5,
    }
    named = {
        f"{task}_{metric}": value
        for task, found in (("ef", scores), ("opt", binary), ("aux", scores))
        for metric, value in found.items()
    }
    costs = {"seconds": 2.5, "rows_per_s": 1234.5, "gradient_norm": 1.0}
    costs |= {"graph_replays": 0, "peak_rss_bytes": 1}
    per_task = {
        f"{key}_{task}": 1.0 for key in ("train_loss", "sigma") for task in ("ef", "opt", "aux")
    }
    return {
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "val_loss": 2.5 / epoch,
        "val_error": 1 / epoch,
        **named,
        **per_task,
        **costs,
        "learning_rates": {"network": 1e-3},
    }


@pytest.fixture(scope="session")
def made_run(make_run: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; tests read it and copy it, never change it."""
    return make_run(tmp_path_factory.mktemp("made") / "run")


CHOICES = ("scar", "border", "all_over")
REWARD = {
    "terms": [{"task": "ef", "weight": 0.5}, {"task": "opt", "weight": 0.3}],
    "penalties": [{"task": "aux", "above": 10.0, "penalty": 0.2, "width": 0.1}],
}


def design_frame(num_rows: int = 420) -> pl.DataFrame:
    """Return the tiny table with patients' features, doses and one-hot columns."""
    rng = np.random.default_rng(3)
    group = np.arange(num_rows) % 12
    of_patient = rng.normal(size=(12, 2))
    picked = np.eye(3)[rng.integers(3, size=num_rows)]
    gaps = pl.Series([None if g % 4 == 1 else float(of_patient[g, 1]) for g in group])
    return tiny_frame(num_rows).with_columns(
        x0=of_patient[group, 0],
        age=gaps,
        dose=rng.integers(1, 7, num_rows),
        sex=pl.Series(["fm"[g % 2] for g in group]),
        **{name: picked[:, k] for k, name in enumerate(CHOICES)},
    )


def design_data(folder: Path) -> dict[str, Any]:
    """Return the section `data` of its config."""
    return {
        "path": str(folder / "table.parquet"),
        "numeric": [
            {"column": "x0", "feature_group": "first"},
            {"column": "x1", "low": 0, "high": 100},
            {"column": "x2", "transform": "log10"},
            {"column": "age", "if_null": "indicator"},
            {"column": "dose"},
            *({"column": name} for name in CHOICES),
        ],
        "categories": [{"column": "kind"}, {"column": "sex"}],
    }


@pytest.fixture(scope="session")
def designable(
    tiny_experiment: Path, make_run: RunMaker, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose rows have all that a design can consist of: materials, formulations, choices, and
    what is the patient's; tests read it and copy it, never change it.
    """
    folder = tmp_path_factory.mktemp("designable")
    design_frame().write_parquet(folder / "table.parquet")
    changes = {
        "data": design_data(folder),
        "cache": {"path": str(folder / "cache.zarr")},
        "reward": REWARD,
    }
    config = folder / "build.yaml"
    config.write_text(yaml.safe_dump({**changes, "extends": str(tiny_experiment)}))
    build_experiment(load_experiment(config))
    return make_run(folder / "run", **changes)
