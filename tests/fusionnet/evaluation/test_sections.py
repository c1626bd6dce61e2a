"""Beside a report's numbers: metrics in words, thresholds, maps of strings, provenance."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from fusionnet.config.tasks import METRICS
from fusionnet.evaluation import plots
from fusionnet.evaluation.explained import MEANINGS, explanations
from fusionnet.evaluation.plots import Drawing
from fusionnet.evaluation.provenance import costs, provenance
from fusionnet.evaluation.ranking import thresholds
from fusionnet.evaluation.string_map import main_directions
from fusionnet.metrics import binary_metrics
from fusionnet.trained.run import load_run
from fusionnet.workflow.evaluating import evaluate_folder


def test_every_metric_has_one_plain_line(made_run: Path) -> None:
    assert {metric for metrics in METRICS.values() for metric in metrics} == set(MEANINGS)
    assert all(len(text) < 130 and "\n" not in text for text in MEANINGS.values())
    tasks = load_run(made_run).tasks
    log = tasks[0].model_copy(update={"transform": "log10"})
    titles = [title for title, _ in explanations([log, *tasks[1:]])]
    assert titles[:4] == ["MAE", "RMSE", "R²", "Spearman correlation"]
    assert "… of log10" in titles
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("num_values", [3, 1000])
def test_the_areas_below_the_curves_are_the_metrics(num_values: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.random(500) < 0.3
    score = np.round(0.2 * label + rng.random(500), 6 if num_values > 3 else 0) / 1.2
    found = thresholds(label, score)
    wanted = binary_metrics(label.astype(float), score)
    rates = np.append(0, found.false_rate), np.append(0, found.recall)
    assert np.trapezoid(rates[1], rates[0]) == pytest.approx(wanted["auroc"])
    steps = np.diff(np.append(0, found.recall))
    assert (steps * found.precision).sum() == pytest.approx(wanted["auprc"])


def test_a_map_shows_the_directions_of_most_variance() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(30, 2)) * [5, 1]
    turned = flat @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:2] + 3
    places, share = main_directions(turned)
    assert share.sum() == pytest.approx(1)
    assert share[0] > 0.8
    between = [np.linalg.norm(each[:, None] - each[None], axis=2) for each in (flat, places)]
    np.testing.assert_allclose(between[0], between[1], atol=1e-9)
    for few in (turned[:1], np.ones((4, 8)), np.ones((3, 1))):  # nothing to tell apart
        places, share = main_directions(few)
        assert places.shape == (len(few), 2)
        assert np.isfinite(places).all()
        assert (share == 0).all() or len(few) == 1


def test_pictures_have_their_titles_inside() -> None:
    figure = Figure()
    plots._give_title(Drawing("name", f"$5^$ {'long ' * 60}", "", figure))
    lines = figure.get_suptitle().splitlines()
    assert lines[0].startswith("$5^$ long")
    assert 2 < len(lines) < 6


@pytest.mark.slow
def test_the_page_says_where_its_numbers_come_from(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(made_run)
    said = dict(provenance(run))
    assert run.run_id in said["run"]
    assert f"torch {torch.__version__}" in said["by"]
    assert re.fullmatch(r"sha256 [0-9a-f]{16}", said["table"])
    (training, own) = costs(run.records, {"metrics": 1.5}, 2**30)
    assert training["seconds"] == sum(record["seconds"] for record in run.records)
    assert own["seconds"] == 1.5
    assert own["bytes"] == 2**30
    monkeypatch.setenv("PATH", "")  # no git
    assert dict(provenance(run))["by"].startswith("fusionnet 0")
    copy = shutil.copytree(made_run, tmp_path / "run")
    evaluate_folder(copy, with_baselines=False)
    page = (copy / "report.html").read_text()
    for part in ("What the metrics mean", "Provenance", run.run_id, "the model in this page"):
        assert part in page
    drawn = {path.stem for path in (copy / "plots").iterdir()}
    assert {"ranking_opt", "map_polymer", "map_partner"} < drawn
