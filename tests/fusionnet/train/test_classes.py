"""Classes from a table to a run, its predictions, its reward and its report."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from forks import Forks
from provable import Training
from shared_fixtures import TINY_STRINGS, tiny_config

from embedcache.build.decide import build_cache
from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError, ProofError
from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.experiment import load_experiment
from fusionnet.model import loss as model_loss
from fusionnet.trained.run import load_run

NUM_ROWS = 500
PHASES = ("glass", "liquid", "rubber")
TASKS = [
    {"name": "phase", "column": "phase", "kind": "multiclass", "class_weights": "auto"},
    {"name": "grade", "column": "grade", "kind": "ordinal", "unit": ""},
    {"name": "dry", "column": "dry", "kind": "binary", "classes": ["no", "yes"], "head": [8]},
    {"name": "y", "column": "y", "transform": "quantile", "loss": "mse"},
]


class Study(NamedTuple):
    frame: pl.DataFrame
    config: Path


@pytest.fixture(scope="module")
def study(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, len(TINY_STRINGS), NUM_ROWS), rng.normal(size=NUM_ROWS)
    z = 0.5 * string + 1.5 * x
    phase = np.digitize(z, np.quantile(z, [0.6, 0.8]))
    frame = pl.DataFrame(
        {
            "smiles": [TINY_STRINGS[each] for each in string],
            "x": x,
            "phase": [PHASES[k] if rng.random() > 0.1 else None for k in phase],
            "grade": np.digitize(z + 0.2 * rng.normal(size=NUM_ROWS), [0, 1, 2]) + 1,
            "dry": np.where(z + 0.5 * rng.normal(size=NUM_ROWS) > 1, "yes", "no"),
            "y": np.exp(3 * z),
            "sure": rng.uniform(0, 2, NUM_ROWS),
        }
    )
    folder = tmp_path_factory.mktemp("classes")
    frame.write_csv(folder / "table.csv")
    tiny = tiny_config(folder, tiny_encoder_folder)
    tiny |= {
        "data": {
            "path": str(folder / "table.csv"),
            "strings": [{"name": "polymer", "column": "smiles"}],
            "numeric": [{"column": "x"}],
            "row_weight": {"column": "sure"},
        },
        "split": {"strategy": "random"},
        "encoder": {"source": str(tiny_encoder_folder)},
        "tasks": TASKS,
        "model": {**tiny["model"], "linear_skip": True},
        "optim": {"lr": 0.01, "warmup_epochs": 0},
        "train": {"epochs": 8, "batch_rows": 32, "prove": 2, "cpu_threads": 1},
        "reward": {
            "terms": [{"task": "phase", "label": "rubber", "weight": 2.0}],
            "penalties": [{"task": "grade", "above": 2.5, "penalty": 1.0}],
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tiny))
    experiment = load_experiment(config)
    parts = (experiment.data, experiment.targets, experiment.split)
    build_cache(*parts, experiment.encoder, experiment.cache)
    return Study(frame, config)


@pytest.fixture(scope="module")
def trained(study: Study, forks: Forks, repository: Path) -> Path:
    forks.run(repository / "jobs" / "train.py", "--config", study.config)
    return study.config.parent / "run"


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_the_certificate_knows_the_losses_of_classes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    assert Training(study.config, tmp_path, static=static).prove().passed
    monkeypatch.setattr(
        model_loss, "class_weights", lambda task, _: (1.0,) * task.num_classes * task.has_codes
    )
    with pytest.raises(ProofError):
        Training(study.config, tmp_path, static=static).prove()


@pytest.mark.slow
@pytest.mark.xdist_group("classes")
def test_a_run_learns_them_and_says_how_well(study: Study, trained: Path, tmp_path: Path) -> None:
    run = load_run(trained)
    assert [proof["passed"] for proof in _proofs(trained)] == [True, True]
    cache = open_cache(study.config.parent / "cache.zarr")
    found = evaluate_run(run, cache, "validation", progress=False)
    logged = {name: run.record[f"grade_{name}"] for name in found.metrics["grade"]}
    assert logged == pytest.approx(found.metrics["grade"], rel=1e-3)
    mean = found.baselines["mean of the train rows"]
    for column, metric in (("phase", "f1"), ("grade", "kappa"), ("dry", "auroc")):
        assert found.metrics[column][metric] > (mean[column][metric] or 0) + 0.2, column
    assert (found.metrics["y"]["spearman"] or 0) > 0.8
    page = write_report(run, found, run.records, tmp_path).read_text()
    for text in ("predicted against observed classes", "quadratic kappa", "chances of all classes"):
        assert text in page


@pytest.mark.slow
@pytest.mark.xdist_group("classes")
def test_predictions_name_the_class_beside_all_chances(study: Study, trained: Path) -> None:
    model = RewardModel.load(trained)
    found = model.predict(study.frame)
    chances = found.select(f"probability_phase_{name}" for name in PHASES)
    np.testing.assert_allclose(chances.sum_horizontal(), 1.0, rtol=1e-5)
    known = study.frame["phase"].is_not_null()
    assert (found["predicted_phase"] == study.frame["phase"]).filter(known).mean() > 0.75
    # weights move the decision, not the chances: these are right on average
    share = (study.frame["phase"].filter(known) == "glass").mean()
    assert found["probability_phase_glass"].mean() == pytest.approx(share, abs=0.08)
    assert set(found["predicted_grade"]) <= {"1", "2", "3", "4"}
    assert (found["predicted_y"] > 0).all()
    broken = study.frame.head(3).with_columns(x=pl.Series([1.0, None, 2.0]))
    skipped = model.predict(broken, on_invalid="skip")
    assert skipped["predicted_phase"].is_null().to_list() == [False, True, False]
    assert skipped["probability_phase_glass"].is_null().to_list() == [False, True, False]
    as_pandas = model.predict(pd.DataFrame(study.frame.head(3).to_dict(as_series=False)))
    assert as_pandas["predicted_phase"].tolist() == found["predicted_phase"].head(3).to_list()


@pytest.mark.slow
@pytest.mark.xdist_group("classes")
def test_a_reward_reads_chances_and_the_mean_of_ordered_classes(
    study: Study, trained: Path
) -> None:
    model, frame = RewardModel.load(trained), study.frame.head(50)
    found = model.predict(frame)
    grade = sum(k * found[f"probability_grade_{k + 1}"] for k in range(4))
    wanted = 2 * found["probability_phase_rubber"] - (grade > 2.5).cast(pl.Float64)
    np.testing.assert_allclose(model.reward(frame).numpy(), wanted, rtol=1e-4, atol=1e-5)
    vectors, inputs = model.inputs(frame)
    inputs.numeric.requires_grad_()
    model.differentiable(vectors, inputs, softness=0.1).sum().backward()
    assert inputs.numeric.grad is not None
    assert (inputs.numeric.grad != 0).any()
    for term, said in (
        ({"task": "phase", "weight": 1}, "say in `label` which one's chance is meant: glass"),
        ({"task": "phase", "label": "gas", "weight": 1}, "whose classes are glass, liquid"),
        ({"task": "y", "label": "gas", "weight": 1}, "whose classes are none"),
    ):
        object.__setattr__(model.run, "reward", RewardConfig(terms=[term]))
        with pytest.raises(ConfigError, match=said):
            model.check_reward()


def _proofs(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "tiny_proof.json").read_text())["proofs"]
