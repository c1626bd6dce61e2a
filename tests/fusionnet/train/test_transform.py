"""A target over decades is learnt in decades; everything that leaves the model is in its unit."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from forks import Forks
from provable import Training
from shared_fixtures import TINY_STRINGS, tiny_config

from embedcache.build.decide import build_cache
from embedcache.cache.reader import open_cache
from embedcache.errors import NonFinitePredictionError, ProofError
from embedcache.scaling import Scaling
from fusionnet import RewardModel
from fusionnet.evaluation.baselines import BASELINES, STRING_MEAN, TRAIN_MEAN
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.figures import MOST_POINTS, parity
from fusionnet.evaluation.plots import draw_plots
from fusionnet.evaluation.result import Evaluation
from fusionnet.experiment import load_experiment
from fusionnet.metrics import regression_metrics
from fusionnet.rows.tensors import load_rows
from fusionnet.trained.run import load_run

NUM_ROWS = 400
SMALL = {"fusion_width": 16, "num_layers": 1, "num_heads": 2, "feedforward": 16}


class Decades(NamedTuple):
    """The same table, learnt as it is and in decades: configs by the target's transform."""

    frame: pl.DataFrame
    configs: dict[str, Path]


@pytest.fixture(scope="module")
def decades(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Decades:
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, len(TINY_STRINGS), NUM_ROWS), rng.uniform(-2, 2, NUM_ROWS)
    rate = 10 ** (string - 5 + 1.5 * x + 0.1 * rng.normal(size=NUM_ROWS))
    frame = pl.DataFrame(
        {
            "smiles": [TINY_STRINGS[each] for each in string],
            "x": x,
            "rate": pl.Series(np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rate)).fill_nan(None),
        }
    )
    configs = {}
    for transform in ("standardize", "log10"):
        folder = tmp_path_factory.mktemp(transform)
        frame.write_parquet(folder / "table.parquet")
        tiny = tiny_config(folder, tiny_encoder_folder)
        tiny |= {
            "data": {
                "path": str(folder / "table.parquet"),
                "strings": [{"name": "polymer", "column": "smiles"}],
                "numeric": [{"column": "x"}],
            },
            "split": {"strategy": "random"},
            "encoder": {"source": str(tiny_encoder_folder), "mode": "frozen"},
            "tasks": [{"name": "k", "column": "rate", "unit": "1/s", "transform": transform}],
            "model": {**tiny["model"], **SMALL},
            "optim": {"lr": 0.01, "warmup_epochs": 0},
            "train": {"epochs": 12, "batch_rows": 32, "prove": 2, "cpu_threads": 1},
            "reward": {"terms": [{"task": "k", "weight": 2.0}]},
        }
        configs[transform] = folder / "config.yaml"
        configs[transform].write_text(yaml.safe_dump(tiny))
        experiment = load_experiment(configs[transform])
        build_cache(
            experiment.data,
            experiment.targets,
            experiment.split,
            experiment.encoder,
            experiment.cache,
        )
    return Decades(frame, configs)


@pytest.fixture(scope="module")
def runs(decades: Decades, forks: Forks, repository: Path) -> dict[str, Path]:
    """The two trained runs."""
    for config in decades.configs.values():
        forks.run(repository / "jobs" / "train.py", "--config", config)
    return {name: config.parent / "run" for name, config in decades.configs.items()}


@pytest.fixture(scope="module")
def evaluations(decades: Decades, runs: dict[str, Path]) -> dict[str, Evaluation]:
    caches = {name: config.parent / "cache.zarr" for name, config in decades.configs.items()}
    return {
        name: evaluate_run(load_run(run), open_cache(caches[name]), "test", progress=False)
        for name, run in runs.items()
    }


@pytest.mark.slow
@pytest.mark.xdist_group("decades")
def test_what_is_learnt_in_decades_is_right_in_decades(
    decades: Decades, runs: dict[str, Path], evaluations: dict[str, Evaluation]
) -> None:
    predicted = RewardModel.load(runs["log10"]).predict(decades.frame)["predicted_rate"]
    assert (predicted > 0).all()
    own = evaluations["log10"]
    observed = np.isfinite(own.targets[:, 0])
    target = own.targets[observed, 0]
    assert np.log10(target.max() / target.min()) > 6
    in_decades = {}
    for name, evaluation in evaluations.items():
        prediction = evaluation.predictions[observed, 0].clip(1e-12)
        in_decades[name] = regression_metrics(np.log10(target), np.log10(prediction))
    assert in_decades["log10"]["r2"] > 0.9
    assert in_decades["standardize"]["r2"] < 0.5
    # the metrics are of raw units, the others named for what they are
    found = own.metrics["rate"]
    wanted = regression_metrics(own.targets[:, 0], own.predictions[:, 0])
    wanted |= {f"log10_{name}": value for name, value in in_decades["log10"].items()}
    assert found == pytest.approx(wanted, rel=1e-6)
    assert set(evaluations["standardize"].metrics["rate"]) == {"mae", "rmse", "r2", "spearman"}


@pytest.mark.slow
@pytest.mark.xdist_group("decades")
def test_the_log_of_the_training_has_the_evaluations_metrics(
    decades: Decades, runs: dict[str, Path]
) -> None:
    run = load_run(runs["log10"])
    cache = open_cache(decades.configs["log10"].parent / "cache.zarr")
    found = evaluate_run(run, cache, "validation", progress=False, with_baselines=False)
    logged = {name: run.record[f"k_{name}"] for name in found.metrics["rate"]}
    assert logged == pytest.approx(found.metrics["rate"], rel=1e-4)
    proofs = json.loads((runs["log10"] / "tiny_proof.json").read_text())["proofs"]
    assert [proof["passed"] for proof in proofs] == [True, True]


@pytest.mark.slow
@pytest.mark.xdist_group("decades")
def test_a_reward_is_in_the_targets_unit_and_has_its_slope(
    decades: Decades, runs: dict[str, Path]
) -> None:
    model = RewardModel.load(runs["log10"])
    frame = decades.frame.head(20)
    predicted = torch.from_numpy(model.predict(frame)["predicted_rate"].to_numpy(writable=True))
    torch.testing.assert_close(model.reward(frame), 2 * predicted)
    vectors, inputs = model.inputs(frame)
    x = inputs.numeric.requires_grad_()
    value = model.differentiable(vectors, inputs)
    torch.testing.assert_close(value, 2 * predicted, rtol=1e-4, atol=0.0)
    (slope,) = torch.autograd.grad(value.sum(), x)
    step = 1e-2
    with torch.no_grad():
        x += step
        above = model.differentiable(vectors, inputs)
        x -= 2 * step
        below = model.differentiable(vectors, inputs)
    wanted = (above - below) / (2 * step)
    assert (slope.squeeze(1) - wanted).norm() < 0.05 * wanted.norm()
    with torch.no_grad():
        model.run.model.network.heads["k"][-1].bias.fill_(1e3)
    with pytest.raises(NonFinitePredictionError, match=r"20 rows of 20 .* NaN or infinite"):
        RewardModel(model.run).predict(frame)


@pytest.mark.slow
@pytest.mark.xdist_group("decades")
def test_plots_and_baselines_are_in_the_targets_unit(
    decades: Decades, runs: dict[str, Path], evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    run, own = load_run(runs["log10"]), evaluations["log10"]
    assert "Means and trees are of log10 of rate." in own.baselines_remark
    assert own.baselines[STRING_MEAN]["rate"]["log10_r2"] > 0.3
    assert len(draw_plots(run, own, run.records, tmp_path)) == 3
    for num_rows in (50, MOST_POINTS):
        rate = 10 ** np.linspace(-6, 2, num_rows)
        axes = parity(rate, rate[::-1], run.tasks[0]).axes[0]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert {"1e\N{MINUS SIGN}06", "0.0001", "1"} <= set(labels)


def test_a_mean_is_taken_of_transformed_labels(decades: Decades) -> None:
    cache = open_cache(decades.configs["log10"].parent / "cache.zarr")
    rows = cache.rows()
    train = rows.targets[rows.split == 0, 0].astype(np.float64)
    geometric = 10 ** np.nanmean(np.log10(train))
    found = BASELINES[TRAIN_MEAN](cache, 0, 0)
    np.testing.assert_allclose(found, geometric, rtol=1e-5)


def test_rows_have_the_labels_that_the_loss_reads(decades: Decades) -> None:
    for name, config in decades.configs.items():
        cache = open_cache(config.parent / "cache.zarr")
        raw, rows = cache.rows(), load_rows(cache, "train")
        wanted = raw.targets[raw.split == 0].astype(np.float64)
        wanted = np.log10(wanted) if name == "log10" else wanted
        np.testing.assert_array_equal(rows.targets.numpy(), wanted.astype(np.float32))
        assert cache.scaling.target_mean[0] == pytest.approx(np.nanmean(wanted), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_the_certificate_knows_the_transform(
    decades: Decades, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    assert Training(decades.configs["log10"], tmp_path, static=static).prove().passed
    monkeypatch.setattr(Scaling, "as_learnt", lambda scaling, labels: labels)
    with pytest.raises(ProofError, match="rows are not those of the cache"):
        Training(decades.configs["log10"], tmp_path, static=static).prove()
