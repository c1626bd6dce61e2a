"""Noise that is learnt, and intervals: from a table to a run, its predictions and its report."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from provable import Training
from scipy.special import logit
from shared_fixtures import TINY_STRINGS

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError, RunError
from fusionnet import FusionModel, RewardModel
from fusionnet.calibration.saved import calibration_path
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.evaluation.summary import summary
from fusionnet.experiment import load_experiment
from fusionnet.trained.run import load_run
from fusionnet.trained.uncertain import calibration_of
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.training import train_experiment

NUM_ROWS = 3_000
NOISE = (0.2, 1.0)  # of y where x is below 0, and above


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose noise depends on x, with a number over decades, classes and groups."""
    folder = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, 4, NUM_ROWS), rng.uniform(-2, 2, NUM_ROWS)
    noise = np.where(x > 0, NOISE[1], NOISE[0])
    y = string + 2 * x + noise * rng.normal(size=NUM_ROWS)
    rate = 10 ** (x - 3 + 0.2 * rng.normal(size=NUM_ROWS))
    table = pl.DataFrame(
        {
            "polymer": [TINY_STRINGS[each] for each in string],
            "kind": rng.choice(["a", "b"], NUM_ROWS),
            "patient": [f"P{each:02d}" for each in np.arange(NUM_ROWS) % 40],
            "x": x,
            "y": pl.Series(np.where(rng.random(NUM_ROWS) < 0.1, np.nan, y)).fill_nan(None),
            "rate": rate,
            "high": y > 1,
        }
    )
    table.write_parquet(folder / "table.parquet")
    strings = [{"name": "polymer", "column": "polymer", "features": ["rdkit"]}]
    values: dict[str, Any] = {
        "data": {
            "path": str(folder / "table.parquet"),
            "strings": strings,
            "numeric": [{"column": "x"}],
            "categories": [{"column": "kind"}],
            "group": "patient",
            "report_by": ["kind"],
        },
        "encoder": {"mode": "none"},
        "cache": {"path": str(folder / "cache.zarr")},
        "split": {"strategy": "group"},
        "tasks": [
            {"name": "y", "column": "y", "loss": "beta_nll"},
            {"name": "rate", "column": "rate", "transform": "log10", "loss": "beta_nll"},
            {"name": "high", "column": "high", "kind": "binary"},
        ],
        "model": {"fusion": "mlp", "fusion_width": 32},
        "optim": {"lr": 0.01, "warmup_epochs": 0},
        "train": {"epochs": 25, "batch_rows": 128, "cpu_threads": 1, "baselines": False},
        "run": {"dir": str(folder / "run")},
        "reward": {"terms": [{"task": "high", "weight": 1.0}]},
    }
    values["train"]["monitor"] = "val_error"
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    build_experiment(load_experiment(file))
    train_experiment(load_experiment(file), str(file), verbose=False)
    return file


@pytest.fixture(scope="module")
def frame(config: Path) -> pl.DataFrame:
    return pl.read_parquet(config.parent / "table.parquet")


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    return config.parent / "run"


@pytest.mark.slow
def test_noise_is_found_where_it_is(run: Path, frame: pl.DataFrame) -> None:
    loaded = load_run(run)
    assert loaded.certificate.startswith("proven")
    assert all(math.isfinite(record["val_error"]) for record in loaded.records)
    found = RewardModel(loaded).predict(frame, uncertainty=True)
    names = [name for name in found.columns if name.startswith(("aleatoric", "epistemic"))]
    assert names == ["aleatoric_y", "aleatoric_rate"]
    card = (run / "README.md").read_text()
    assert "that hold nine of ten labels, as measured on " in card
    assert " validation rows of 8 `patient`; rows of another kind" in card
    little, much = (
        found.filter((frame["x"] > 0) == above)["aleatoric_y"].median() for above in (False, True)
    )
    assert much == pytest.approx(NOISE[1], rel=0.25)
    assert NOISE[0] * 0.75 < little < NOISE[0] * 2  # with what dropout adds in training
    # in the unit: half of what lies within a deviation of a fifth of a decade
    half = (10**0.2 - 10**-0.2) / 2 * found["predicted_rate"]
    assert (found["aleatoric_rate"] / half).median() == pytest.approx(1, rel=0.3)


@pytest.mark.slow
def test_intervals_hold_what_they_promise(config: Path, run: Path, frame: pl.DataFrame) -> None:
    loaded = load_run(run)
    model = RewardModel(loaded)
    found = model.predict(frame, coverage=0.8)
    assert found.columns[:9] == model.columns(coverage=0.8)
    assert (found["lower_rate"] > 0).all()
    cache = open_cache(load_experiment(config).cache.path)
    test = cache.rows().split == 2
    sets = found.select("set_high_0", "set_high_1").to_numpy()
    assert sets.any(1).all()
    held = sets[np.arange(NUM_ROWS), frame["high"].cast(pl.Int64).to_numpy()]
    assert held[test].mean() > 0.72  # the likeliest class is always in the set
    for column in ("y", "rate"):
        inside = (frame[column] >= found[f"lower_{column}"]) & (
            frame[column] <= found[f"upper_{column}"]
        )
        assert inside.filter(test).mean() == pytest.approx(0.8, abs=0.08)
        assert (found[f"lower_{column}"] <= found[f"predicted_{column}"]).all()
        wider = model.predict(frame, coverage=0.95)
        assert (wider[f"upper_{column}"] > found[f"upper_{column}"]).all()
    # rows of much noise and of little are covered alike: widths follow the noise
    y = (frame["y"] >= found["lower_y"]) & (frame["y"] <= found["upper_y"])
    for above in (False, True):
        assert y.filter(test & ((frame["x"] > 0) == above).to_numpy()).mean() > 0.6


@pytest.mark.slow
def test_an_evaluation_counts_what_is_inside(
    config: Path, run: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    loaded = load_run(run)
    cache = open_cache(load_experiment(config).cache.path)
    evaluation = evaluate_run(loaded, cache, "test", progress=False)
    found = RewardModel(loaded).predict(frame[evaluation.rows.tolist()], coverage=0.9)
    own = json.loads(json.dumps(evaluation.to_json(loaded)))["intervals"]
    assert list(own) == ["y", "rate", "high"]
    truth = frame[evaluation.rows.tolist()]
    inside = (truth["y"] >= found["lower_y"]) & (truth["y"] <= found["upper_y"])
    assert own["y"]["covered"] == pytest.approx(inside.mean())
    assert own["y"]["rows"] == inside.count()
    sets = found.select("set_high_0", "set_high_1").to_numpy()
    held = sets[np.arange(len(sets)), truth["high"].cast(pl.Int64).to_numpy()]
    assert own["high"]["covered"] == pytest.approx(held.mean())
    assert own["high"]["mean_size"] == pytest.approx(sets.sum(1).mean())
    width = (found["upper_y"] - found["lower_y"]).filter(truth["y"].is_not_null()).mean()
    assert own["y"]["mean_width"] == pytest.approx(width, rel=1e-5)
    by_patient = truth.select("patient", inside=inside).group_by("patient").mean()
    worst = own["y"]["worst"]
    assert [each["column"] for each in worst] == ["patient", "kind"]
    assert worst[0]["covered"] == pytest.approx(by_patient["inside"].min())
    assert own["y"]["unit"] == "patient"
    num_units = calibration_of(loaded).scores["y"].num_units
    assert own["y"]["guaranteed"] == pytest.approx(0.9 * num_units / (num_units + 1))
    probabilities = evaluation.to_json(loaded)["probabilities"]["high"]
    high, positive = found["predicted_high"].to_numpy(), truth["high"].to_numpy()
    assert probabilities["brier"] == pytest.approx(np.square(high - positive).mean(), rel=1e-5)
    assert probabilities["ece"] < 0.1
    chosen = high > probabilities["threshold"]
    recall = (chosen & positive).sum() / positive.sum()
    assert probabilities["at_threshold"]["recall"] == pytest.approx(recall)
    page = write_report(loaded, evaluation, loaded.records, tmp_path).read_text()
    shown = own["y"]["worst"][0]
    assert f"{100 * shown['covered']:.1f} % ({shown['value']})" in page
    assert f"{own['high']['mean_size']:.3f} classes" in page
    assert "<h2>Probabilities</h2>" in page
    said = summary(loaded, evaluation, loaded.records)
    assert "is a hope" not in said
    assert "probabilities of high: off by" in said
    assert f"90% intervals of y hold {inside.mean():.1%} of its labels" in said


@pytest.mark.slow
def test_units_values_and_guarantees_are_as_asked(
    config: Path, run: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    few = ["train.epochs=1", "train.prove=0", f"run.dir={tmp_path / 'run'}"]
    keys = ["calibration.by=polymer", "calibration.guaranteed=true"]
    train_experiment(load_experiment(config, few + keys), str(config), verbose=False)
    model = RewardModel.load(tmp_path / "run")
    calibration = calibration_of(model.run)
    own = calibration.scores["y"]
    assert set(own.by_value) == set(TINY_STRINGS[:4])
    assert own.num_units == own.least_units == 8  # of 40 groups one fold of five
    assert model.predict(frame, coverage=0.9)["upper_y"].eq(math.inf).all()
    found = model.predict(frame[:200], coverage=0.8)
    width = (found["upper_rate"] - found["predicted_rate"]).is_finite()
    assert width.all()
    # each polymer's rows have its own score
    scale = model.predict(frame[:200], uncertainty=True)["aleatoric_y"]
    score = ((found["upper_y"] - found["lower_y"]) / 2 / scale).to_numpy()
    wanted = [own.score_at(80, text) for text in frame["polymer"][:200]]
    np.testing.assert_allclose(score, wanted, rtol=1e-3)
    assert len(set(wanted)) == 4
    by_row = [*few, "calibration.unit=row"]
    train_experiment(load_experiment(config, by_row), str(config), overwrite=True, verbose=False)
    rows = calibration_of(load_run(tmp_path / "run"))
    assert rows.unit_name == "row"
    assert rows.scores["rate"].num_units == rows.scores["rate"].num_rows == 600


@pytest.mark.slow
def test_members_and_noise_widen_intervals_and_values_have_their_own(
    config: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    keys = ["train.epochs=1", "train.prove=0", f"run.dir={tmp_path / 'run'}"]
    keys += ["model.members=3", "calibration.by=kind", "calibration.unit=string"]
    train_experiment(load_experiment(config, keys), str(config), verbose=False)
    model = RewardModel.load(tmp_path / "run")
    own = calibration_of(model.run).scores["y"]
    assert set(own.by_value) == {"a", "b"}
    found = model.predict(frame[:300], coverage=0.8, uncertainty=True)
    scale = (found["aleatoric_y"] ** 2 + found["epistemic_y"] ** 2).sqrt()
    score = ((found["upper_y"] - found["lower_y"]) / 2 / scale).to_numpy()
    wanted = [own.score_at(80, kind) for kind in frame["kind"][:300]]
    np.testing.assert_allclose(score, wanted, rtol=1e-3)
    assert len(set(wanted)) == 2
    assert own.least_units == own.num_units == 4
    nothing = model.predict(frame[:0], coverage=0.8, uncertainty=True)
    assert nothing.columns == found.columns
    broken = frame[:3].with_columns(kind=pl.Series(["a", "nothing", "b"]))
    skipped = model.predict(broken, "skip", coverage=0.8)
    for name in ("lower_y", "upper_rate", "set_high_1"):
        assert skipped[name].is_null().to_list() == [False, True, False]


@pytest.mark.slow
def test_what_left_out_strings_cannot_promise_is_said(config: Path, tmp_path: Path) -> None:
    keys = ["train.epochs=1", "train.prove=0", f"run.dir={tmp_path / 'run'}"]
    keys += ["calibration.unit=string", "calibration.by=polymer"]
    train_experiment(load_experiment(config, keys), str(config), verbose=False)
    run = load_run(tmp_path / "run")
    assert calibration_of(run).scores["y"].num_units == 4
    assert calibration_of(run).scores["y"].least_units == 1  # a string has itself alone
    cache = open_cache(load_experiment(config).cache.path)
    evaluation = evaluate_run(run, cache, "test", progress=False)
    said = summary(run, evaluation, run.records)
    assert evaluation.intervals["y"].guaranteed == pytest.approx(0.45)
    assert "NOTE  that a new polymer is drawn like those that were measured is a hope" in said
    assert (
        "that strings left out are alike is a hope"
        in write_report(run, evaluation, run.records, tmp_path).read_text()
    )


@pytest.mark.slow
def test_what_does_not_fit_is_refused(config: Path) -> None:
    for key, told in (
        ("calibration.by=nothing", "neither a string column's name nor a category's"),
        ("calibration.by=x", "neither a string column's name nor a category's"),
        ("calibration.unit=planet", "row"),
        ("tasks.0.nll_beta=1.5", "nll_beta"),
        ("tasks.2.loss=beta_nll", "is binary, which takes the losses"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_experiment(config, [key])
    with pytest.raises(ConfigError, match=r"calibration\.unit 'group' needs data\.group"):
        load_experiment(
            config, ["data.group=null", "calibration.unit=group", "split.strategy=random"]
        )


@pytest.mark.slow
def test_intervals_belong_to_one_epoch_of_one_run(run: Path, frame: pl.DataFrame) -> None:
    for coverage in (0.905, 0.2, 1.0, math.nan):
        with pytest.raises(ConfigError, match=r"coverage must be one of 0\.50"):
            RewardModel.load(run).predict(frame, coverage=coverage)
    with pytest.raises(RunError, match="belong to the best epoch"):
        RewardModel.load(run, moment="final").predict(frame, coverage=0.9)
    assert load_run(run, "final").calibration is None
    path = calibration_path(run, "model")
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b'"epoch": ', b'"epoch": 9'))
        behind = RewardModel.load(run)  # a training that goes on
        with pytest.raises(RunError, match=r"has nothing on epoch \d+, so"):
            behind.predict(frame, coverage=0.9)
        assert behind.predict(frame[:9])["predicted_high"].is_finite().all()
        values = json.loads(content)
        assert values["chances"]["high"]["temperature"] != 1
        found = {}
        for temperature in (1.0, 2.0):
            values["chances"]["high"]["temperature"] = temperature
            path.write_text(json.dumps(values))
            model = RewardModel.load(run)
            predicted = model.predict(frame[:50])["predicted_high"]
            sloping = model.differentiable(*model.inputs(frame[:50]))
            np.testing.assert_allclose(sloping.numpy(), predicted.to_numpy(), atol=1e-5)
            found[temperature] = logit(predicted.to_numpy().astype(np.float64))
        exact = found[1.0] < 8  # beyond that, 1 less a chance has few digits
        assert exact.sum() > 30
        wanted = found[1.0][exact] / 2
        np.testing.assert_allclose(found[2.0][exact], wanted, rtol=1e-3, atol=1e-4)
        path.write_bytes(content[:100])
        with pytest.raises(RunError, match="no calibration of a run"):
            load_run(run)
        path.unlink()
        with pytest.raises(RunError, match="by which the run's probabilities are calibrated"):
            load_run(run)
    finally:
        path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 3])
def test_a_step_with_noise_is_proven_in_fine_tuning(
    members: int, tiny_experiment: Path, tmp_path: Path
) -> None:
    keys = ("tasks.0.loss=beta_nll", f"model.members={members}")
    training = Training(tiny_experiment, tmp_path, *keys)
    assert training.prove().passed


@pytest.mark.slow
def test_a_kept_model_keeps_its_intervals(frame: pl.DataFrame, tmp_path: Path) -> None:
    model = FusionModel(
        strings="polymer",
        target="rate",
        encoder={"mode": "none"},
        train={"epochs": 1},
        blend={"boosting": False},
        verbose=False,
    ).fit(frame.drop("y", "high", "patient")[:400])
    wanted = model.predict(frame[:5], coverage=0.9)
    assert {"lower_rate", "upper_rate"} <= set(wanted.columns)
    copied = pickle.loads(pickle.dumps(model))
    assert copied.predict(frame[:5], coverage=0.9).equals(wanted)
    saved = FusionModel.load(model.save(tmp_path / "kept"))
    assert saved.predict(frame[:5], coverage=0.9).equals(wanted)
