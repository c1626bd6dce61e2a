"""The page stands alone, escapes what comes from a table, says loudly what its numbers are worth,
and draws what can be drawn.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from embedcache.cache.reader import open_cache
from embedcache.text import NONE, number
from fusionnet.evaluation.evaluate import Evaluation, evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.trained.run import TrainedRun, load_run


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> TrainedRun:
    return load_run(shutil.copytree(made_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def evaluation(
    made_run: Path, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    oracle = tmp_path_factory.mktemp("oracle") / "oracle.parquet"
    pl.read_parquet(tiny_experiment.parent / "table.parquet").select("outcome").write_parquet(
        oracle
    )
    return evaluate_run(
        load_run(made_run),
        open_cache(tiny_experiment.parent / "cache.zarr"),
        "test",
        oracle,
        progress=False,
    )


def text_of(page: str) -> str:
    """Return what a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_stands_alone_and_shows_every_plot(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    page = write_report(run, evaluation).read_text()
    plots = sorted(path.stem for path in (run.folder / "plots").iterdir())
    assert plots == [
        "by_patient",
        "by_real",
        "calibration_opt",
        "parity_aux",
        "parity_ef",
        "training_loss",
        "training_metrics",
    ]
    assert page.count("data:image/png;base64,") == len(plots)
    assert not re.search(r'(src|href)="(?!data:)', page)
    for path in (run.folder / "plots").iterdir():
        pixels = imread(path)[..., :3].mean(axis=2)
        assert min(pixels.shape) > 200
        # something is drawn, and dark enough to be seen in grey
        assert (pixels < 0.5).mean() > 0.002


def test_the_page_says_what_the_numbers_are_worth(run: TrainedRun, evaluation: Evaluation) -> None:
    goals = tuple(
        task.model_copy(update={"goals": {"mae": 1e9, "rmse": 0.0} if task.name == "ef" else {}})
        for task in run.tasks
    )
    noted = replace(run, note="Synthetic & made up.", recipe=replace(run.recipe, tasks=goals))
    text = text_of(write_report(noted, evaluation).read_text())
    for part in (
        "Note. Synthetic &amp; made up.",
        "Stand-in encoder.",
        "✓ pass",
        "✗ FAIL",
        "(misses the goal too)",
        "mean of",
        "standard deviation",
    ):
        assert part in text
    assert number(evaluation.metrics["outcome"]["mae"]) in text
    assert "share of the" in text
    assert "Beside baselines" in text
    best = evaluation.baselines["mean of the string's train rows"]["outcome"]
    assert f"mean of the string&#39;s train rows {number(best['mae'])} {number(best['r2'])}" in text
    plain = text_of(write_report(run, replace(evaluation, oracle=None, split="train")).read_text())
    assert "fitted to these rows" in plain
    assert "oracle" not in plain.lower().replace("diamonds: the oracle", "")
    assert (run.folder / "report_train.html").is_file()


def test_values_of_the_table_are_escaped(run: TrainedRun, evaluation: Evaluation) -> None:
    evil = "<script>alert(1)</script>"
    table = {
        evil if place == 0 else value: entry
        for place, (value, entry) in enumerate(evaluation.by["patient"].items())
    }
    page = write_report(run, replace(evaluation, by={"patient": table})).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_training_table_goes_on_after_the_best_epoch(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    later = {**run.records[-1], "epoch": 3, "train_loss": 0.125, "val_loss": 9.75}
    (run.folder / "training_log.json").write_text(json.dumps([*run.records, later]))
    assert "3 0.125 9.750" in text_of(write_report(run, evaluation).read_text())
    # of another run
    (run.folder / "training_log.json").write_text(json.dumps([{**later, "epoch": 1}]))
    assert "9.750" not in text_of(write_report(run, evaluation).read_text())


def test_what_cannot_be_drawn_or_computed_is_left_out(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    targets = evaluation.targets.copy()
    targets[:, 2] = np.nan
    targets[:, 0] = 1.0
    metrics = {
        **evaluation.metrics,
        "gappy": dict.fromkeys(("mae", "rmse", "r2")),
        "outcome": {"mae": 0.5, "rmse": 0.5, "r2": None},
    }
    text = text_of(
        write_report(
            run, replace(evaluation, targets=targets, metrics=metrics, oracle=None)
        ).read_text()
    )
    assert "parity_aux" not in {path.stem for path in (run.folder / "plots").iterdir()}
    assert re.search(rf"gappy 0 {NONE} {NONE} {NONE}", text)
