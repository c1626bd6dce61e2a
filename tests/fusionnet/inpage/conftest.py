"""A table with a column of every kind, and untrained runs on it whose weights are moved at random.

Its names end scripts and lines, if anything lets them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
import torch
import yaml

from embedcache.cache.reader import Cache, open_cache
from fusionnet.assemble import build_model, make_sources
from fusionnet.blend.blend import Blend, TaskBlend
from fusionnet.blend.columns import tree_columns
from fusionnet.blend.dumped import forest_of
from fusionnet.calibration.conformal import LEVELS
from fusionnet.calibration.saved import Calibration, TaskChances, TaskScores, as_saved
from fusionnet.config.tasks import prediction_columns
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.blended import features_behind
from fusionnet.trained.run import TrainedRun
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.recipes import recipe_of

EVIL = "</script><script>alert(1)</script>\u2028<!--"
NUM_ROWS = 400
STRINGS = ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C", "[*]CC([*])c1ccccc1", "[*]c1ccc([*])[nH]1"]
RunOf = Callable[..., TrainedRun]


@pytest.fixture(scope="session")
def rich_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rich") / "table.parquet"
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, 5, NUM_ROWS), rng.normal(size=(NUM_ROWS, 4))
    y = string + x[:, 0] + 0.1 * rng.normal(size=NUM_ROWS)
    pl.DataFrame(
        {
            "smiles": [STRINGS[each] for each in string],
            "other": [STRINGS[each] for each in rng.integers(0, 3, NUM_ROWS)],
            EVIL: x[:, 0],
            "skewed": np.exp(2 * x[:, 1]),
            "modulus": 10 ** x[:, 2],
            "time": np.abs(x[:, 3]),
            "celsius": 20 + 10 * rng.normal(size=NUM_ROWS),
            "gappy": pl.Series(np.where(rng.random(NUM_ROWS) < 0.2, np.nan, y)).fill_nan(None),
            "switch": rng.integers(0, 2, NUM_ROWS),
            "kind": rng.choice(["a", EVIL, "c"], NUM_ROWS),
            "maker": rng.choice(["m", "n", "rare"], NUM_ROWS, p=[0.5, 0.49, 0.01]),
            "number": y,
            "decades": 10 ** (y / 2),
            "ranked": np.exp(y),
            "grown": np.abs(y),
            "good": y > 2,
            "plain": rng.random(NUM_ROWS) < 0.3,
            "class": [["red", "green", EVIL][each % 3] for each in string],
            "grade": [["low", "middle", "high", "top"][min(3, int(abs(each)))] for each in y],
        }
    ).write_parquet(file)
    return file


def _config(table: Path, encoder: Path) -> dict[str, Any]:
    transforms = {"skewed": "quantile", "modulus": "log10", "time": "log1p"}
    transforms["celsius"] = "inverse_kelvin"
    head = {"head": [8]}
    grades = ["low", "middle", "high", "top"]
    return {
        "data": {
            "path": str(table),
            "strings": [
                {"name": "polymer", "column": "smiles", "features": ["rdkit"]},
                {"name": "partner", "column": "other"},
            ],
            "numeric": [
                {"column": EVIL, "unit": "%", "feature_group": "first", "high": 10},
                *({"column": name, "transform": each} for name, each in transforms.items()),
                {"column": "gappy", "if_null": "indicator"},
                {"column": "switch"},
            ],
            "categories": [{"column": "kind"}, {"column": "maker", "other": "x", "min_rows": 9}],
        },
        "split": {"strategy": "random"},
        "encoder": {"source": str(encoder), "mode": "frozen"},
        "cache": {"path": str(table.with_name("cache.zarr"))},
        "tasks": [
            {"name": "number", "column": "number", "unit": "mm", "head": [16, 8]},
            {"name": "decades", "column": "decades", "transform": "log10", **head}
            | {"loss": "beta_nll"},
            {"name": "ranked", "column": "ranked", "transform": "quantile", **head},
            {"name": "grown", "column": "grown", "transform": "log1p", "loss": "mse", **head},
            {"name": "good", "column": "good", "kind": "binary", **head},
            {"name": "plain", "column": "plain", "kind": "binary", "loss": "bce", **head},
            {"name": "class", "column": "class", "kind": "multiclass", "class_weights": "auto"}
            | head,
            {"name": "grade", "column": "grade", "kind": "ordinal", "classes": grades, **head},
        ],
        "model": {
            **{"adapter_hidden": 24, "adapter_width": 16, "numeric_hidden": 8, "numeric_width": 8},
            **{"category_width": 4, "fusion_width": 32, "num_layers": 2, "num_heads": 4},
            "feedforward": 48,
        },
        "reward": {
            "terms": [
                {"task": "number", "weight": 0.5},
                {"task": "good", "weight": 2.0},
                {"task": "class", "label": EVIL, "weight": -1.0},
                {"task": "grade", "weight": 0.3},
            ],
            "penalties": [
                {"task": "plain", "above": 0.5, "penalty": 1.0},
                {"task": "decades", "below": 10.0, "penalty": 0.25},
            ],
        },
        "run": {"dir": str(table.parent / "run"), "name": "rich"},
    }


@pytest.fixture(scope="session")
def rich_experiment(rich_table: Path, tiny_encoder_folder: Path) -> Path:
    file = rich_table.with_name("rich.yaml")
    file.write_text(yaml.safe_dump(_config(rich_table, tiny_encoder_folder)))
    build_experiment(load_experiment(file))
    return file


@pytest.fixture(scope="session")
def run_of(rich_experiment: Path) -> RunOf:
    """Make runs on the table, with calibration, and trees where they are wanted."""

    def make(with_trees: bool = False, pessimism: float = 0.0, **model: Any) -> TrainedRun:
        changes = [f"model.{name}={value}" for name, value in model.items()]
        changes.append(f"reward.pessimism={pessimism}")
        experiment = load_experiment(rich_experiment, changes)
        cache = open_cache(experiment.cache.path)
        run = _untrained(experiment, cache)
        if pessimism:
            run = _doubtful(run)
        return replace(run, blend=_blend(run, cache)) if with_trees else run

    return make


def _untrained(experiment: Experiment, cache: Cache) -> TrainedRun:
    recipe, layout = recipe_of(experiment, cache), cache.layout
    model = build_model(recipe, layout, cache.scaling)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    names = [spec.name for spec in layout.strings]
    sources = zip(names, make_sources(model, recipe, cache), strict=True)
    levels = as_saved(tuple(level / 40 for level in LEVELS))
    few = as_saved(tuple(0.5 if level < 80 else float("inf") for level in LEVELS))
    sizes = {"num_rows": 70, "num_units": 70, "least_units": 2}
    scores = TaskScores(**sizes, pooled=levels, by_value={STRINGS[0]: few})
    shares = TaskScores(**sizes, pooled=as_saved(tuple(level / 130 for level in LEVELS)))
    with_chances = [task.name for task in recipe.tasks if task.kind != "regression"]
    return TrainedRun(
        folder=Path("runs/rich"),
        name="rich",
        run_id="0" * 16,
        moment="best",
        epoch=1,
        config=experiment.model_dump(mode="json"),
        data=experiment.data,
        reward=experiment.reward,
        design=experiment.design,
        note="",
        recipe=recipe,
        layout=layout,
        scaling=cache.scaling,
        identity={},
        saving="",
        records=[],
        model=model.eval().requires_grad_(False),
        strings={
            name: {text: row for row, text in enumerate(cache.strings(name).text)} for name in names
        },
        vectors={name: source.vectors_of_all_strings().float() for name, source in sources},
        encoder_state={},
        calibration=Calibration(
            run_id="0" * 16,
            epoch=1,
            unit="row",
            unit_name="row",
            by="polymer",
            guaranteed=False,
            folds=0,
            scores={
                task.name: shares if task.name in with_chances else scores for task in recipe.tasks
            },
            chances={name: TaskChances(temperature=1.7) for name in with_chances},
        ),
    )


def _doubtful(run: TrainedRun) -> TrainedRun:
    """Return the run as one that never saw two of the strings, and knows how far it is off then."""
    assert run.calibration is not None
    generator = np.random.default_rng(3)
    num_columns = prediction_columns(run.tasks)[-1].stop
    errors = tuple(tuple(row) for row in generator.normal(size=(4, num_columns)).tolist())
    changed = {"unit": "string", "unit_name": "polymer", "mean_errors": errors}
    return replace(
        run,
        scaling=replace(run.scaling, untrained_strings={"polymer": (1, 2)}),
        calibration=run.calibration.model_copy(update=changed),
    )


def _blend(run: TrainedRun, cache: Cache) -> Blend:
    """Return a few trees for each target, grown on nonsense."""
    rows = cache.rows(0, cache.layout.num_rows)
    numeric = run.scaling.apply(torch.from_numpy(rows.numeric))
    inputs = RowInputs(
        torch.from_numpy(rows.string_id).long(), numeric, torch.from_numpy(rows.category).long()
    )
    specs = run.layout.strings
    features = [features_behind(spec, run.vectors[spec.name]) for spec in specs]
    texts = [list(run.strings[spec.name]) for spec in specs]
    columns = tree_columns(inputs, texts, features)
    tables = [
        part.table(own, each)
        for part, own, each in zip(columns.strings, texts, features, strict=True)
    ]
    x = columns.matrix(inputs, tables).numpy()
    rng = np.random.default_rng(0)
    tasks = {}
    for task in run.tasks:
        num = task.num_classes
        objective = {"objective": "multiclass", "num_class": num} if num > 1 else {}
        parameters = {**objective, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
        label = rng.integers(0, max(2, num), len(x)) * 1.0
        booster = lightgbm.train(parameters, lightgbm.Dataset(x, label), 5)
        tasks[task.name] = TaskBlend(0.6, forest_of(booster, num))
    return Blend(columns, tasks)
