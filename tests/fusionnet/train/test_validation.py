"""Validation rows without labels: no loss of nothing, no best epoch by it, dashes instead."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from forks import Forks
from shared_fixtures import tiny_config, tiny_frame

from embedcache.cache.reader import Cache, open_cache
from embedcache.text import NONE
from fusionnet.config.tasks import Task
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.evaluation.summary import summary
from fusionnet.experiment import load_experiment
from fusionnet.train.checkpoint import load_checkpoint
from fusionnet.train.validation import mean_log_loss
from fusionnet.trained.card import model_card
from fusionnet.trained.run import load_run
from fusionnet.workflow.building import build_experiment

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("no_validation_labels")]


def built(folder: Path, encoder: Path, labelled: tuple[str, ...]) -> Path:
    """Return the config of a built cache whose validation rows have labels of these columns."""
    folder.mkdir()
    part = np.array(["train", "validation", "train", "test"])[np.arange(420) % 4]
    frame = tiny_frame().with_columns(part=pl.Series(part)).drop("patient")
    for column in {"outcome", "good"} - set(labelled):
        seen = pl.when(pl.col("part") != "validation").then(pl.col(column))
        frame = frame.with_columns(seen.alias(column))
    frame.write_parquet(folder / "table.parquet")
    tiny = tiny_config(folder, encoder)
    tiny["data"] |= {"group": None, "stratum": None, "report_by": ["real"]}
    tiny["split"] = {"strategy": "column", "column": "part"}
    tiny["encoder"]["mode"] = "frozen"
    tiny["tasks"] = tiny["tasks"][:2]
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    experiment = load_experiment(config)
    report = build_experiment(experiment)
    assert "no validation row has a label for 'ef'" in report.summary()
    return config


@pytest.fixture(scope="module")
def config(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("none") / "none", tiny_encoder_folder, ())


@pytest.fixture(scope="module")
def printed(config: Path, forks: Forks, repository: Path) -> str:
    return forks.run(repository / "jobs" / "train.py", "--config", config).out


@pytest.fixture
def cache(config: Path) -> Cache:
    return open_cache(config.parent / "cache.zarr")


def test_the_last_epoch_is_the_best_and_training_says_so(config: Path, printed: str) -> None:
    run = config.parent / "run"
    assert "no validation row has a label for 'ef', 'opt': there is no validation loss" in printed
    assert "the last epoch, 2, is the best" in printed
    records = json.loads((run / "training_log.json").read_text())
    assert [record["val_loss"] for record in records] == [None, None]
    assert [record["val_error"] for record in records] == [None, None]
    assert {record["ef_r2"] for record in records} == {None}
    assert all(record["train_loss"] is not None for record in records)
    assert load_checkpoint(run / "tiny_best.pt")["epoch"] == 2
    assert "the last one, since no validation row has a label" in model_card(load_run(run))


def test_an_evaluation_without_labels_shows_dashes_and_says_why(
    config: Path, printed: str, cache: Cache, tmp_path: Path
) -> None:
    run = load_run(config.parent / "run")
    evaluation = evaluate_run(run, cache, "validation", progress=False)
    assert {value for each in evaluation.metrics.values() for value in each.values()} == {None}
    said = "No validation row has a label for outcome, good: there are no metrics of it."
    text = summary(run, evaluation, run.records)
    assert f"NOTE  {said}" in text
    assert re.search(rf"outcome +mae +{NONE}\n", text)
    page = write_report(run, evaluation, run.records, tmp_path).read_text()
    assert said in page
    plots = {path.name for path in (tmp_path / "plots_validation").iterdir()}
    assert plots == {"training_loss.png", "training_metrics.png"}
    json.dumps(evaluation.to_json(run), allow_nan=False)


def test_a_task_without_validation_labels_does_not_count(
    tiny_encoder_folder: Path, tmp_path: Path, forks: Forks, repository: Path
) -> None:
    config = built(tmp_path / "some", tiny_encoder_folder, ("good",))
    done = forks.run(repository / "jobs" / "train.py", "--config", config)
    assert "label for 'ef': the validation loss is that of the others" in done.out
    records = json.loads((tmp_path / "some" / "run" / "training_log.json").read_text())
    assert all(record["val_loss"] > 0 for record in records)
    assert all(np.isfinite(record["val_error"]) for record in records)
    best = load_checkpoint(tmp_path / "some" / "run" / "tiny_best.pt")["best_val_loss"]
    assert best == min(record["val_loss"] for record in records)


def test_the_error_is_the_loss_at_the_log_variances_that_fit_best() -> None:
    tasks = [
        Task.model_validate({"name": name, "column": name, "weight": weight})
        for name, weight in (("a", 1), ("b", 3), ("none", 5))
    ]
    losses = torch.tensor([0.2, 1.7, 0.0], dtype=torch.float64)
    denominators = torch.tensor([40.0, 7.0, 0.0], dtype=torch.float64)
    grid = torch.linspace(-5, 5, 100_001, dtype=torch.float64)[:, None]
    weighted = torch.tensor([1, 3, 0]) * ((-grid).exp() * losses + grid)  # [grid, task]
    least = float(weighted.min(0).values.sum()) / 4
    found = mean_log_loss(losses * denominators, denominators, tasks)
    assert found == pytest.approx(least - 1, abs=1e-6)
    assert mean_log_loss(losses, 0 * denominators, tasks) is None
    # noise of one number that fits is the mean square that it is of
    noisy = [Task(name="n", column="n", loss="beta_nll")]
    square = torch.tensor([0.7])
    likelihood = (square.log() + 1) / 2
    found = mean_log_loss(9 * likelihood, torch.tensor([9.0]), noisy)
    assert found == pytest.approx(float(square.log()), abs=1e-6)
    zero = mean_log_loss(0 * losses, denominators, tasks)
    assert zero is not None
    assert np.isfinite(zero)
