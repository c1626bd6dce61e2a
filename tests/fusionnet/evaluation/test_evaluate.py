"""An evaluation is of the run's own cache, split and rows; the oracle and the groups are measured
on the same rows; verdicts follow the goals.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import RunError, StaleCacheError
from embedcache.text import number
from fusionnet import RewardModel
from fusionnet.config.tasks import BINARY_METRICS, REGRESSION_METRICS
from fusionnet.evaluation.baselines import BOOSTING, STRING_MEAN, TRAIN_MEAN, take
from fusionnet.evaluation.breakdown import rows_of_each
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.outputs import evaluation_files
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import rows_of_cache, units_of
from fusionnet.evaluation.summary import summary
from fusionnet.metrics import task_metrics
from fusionnet.trained.run import TrainedRun, load_run


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def cache(tiny_experiment: Path) -> Cache:
    return open_cache(tiny_experiment.parent / "cache.zarr")


@pytest.fixture(scope="module")
def run(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture(scope="module")
def oracle(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perfect for `outcome`, a constant rank for `good`; nothing is known of `gappy`."""
    path = tmp_path_factory.mktemp("oracle") / "oracle.parquet"
    frame.select("outcome", good=pl.col("good").cast(pl.Float64) * 0.8 + 0.1).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def evaluation(run: TrainedRun, cache: Cache, oracle: Path) -> Evaluation:
    return evaluate_run(run, cache, "test", oracle, progress=False)


def with_goals(run: TrainedRun, **goals: dict[str, float]) -> TrainedRun:
    tasks = tuple(task.model_copy(update={"goals": goals.get(task.name, {})}) for task in run.tasks)
    return replace(run, recipe=replace(run.recipe, tasks=tasks))


def test_the_rows_are_those_of_the_split_and_the_predictions_those_of_the_run(
    run: TrainedRun, cache: Cache, frame: pl.DataFrame
) -> None:
    split = cache.rows().split
    for code, name in enumerate(("train", "validation", "test")):
        found = evaluate_run(run, cache, name, progress=False, with_baselines=False)
        rows = frame.filter(pl.Series(split == code))
        predicted = RewardModel(run).predict(rows)
        wanted = predicted.select(pl.selectors.float()).to_numpy()
        np.testing.assert_allclose(found.predictions, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(
            found.targets[:, 0], rows["outcome"].cast(pl.Float32).to_numpy()
        )
        assert found.num_groups == rows["patient"].n_unique()
        by_hand = (rows["outcome"] - predicted["predicted_outcome"]).abs().mean()
        assert found.metrics["outcome"]["mae"] == pytest.approx(by_hand, rel=1e-5)


def test_a_positive_is_what_the_loss_decides_for(run: TrainedRun, evaluation: Evaluation) -> None:
    probability, label = evaluation.predictions[:, 1], evaluation.targets[:, 1] == 1
    rate = run.scaling.positive_rate["opt"]  # what a score of 0.5 is where classes are balanced
    found = evaluation.metrics["good"]["accuracy"]
    assert found == pytest.approx(((probability > rate) == label).mean())
    assert found != pytest.approx(((probability > 0.5) == label).mean())


def test_the_oracle_is_measured_on_the_same_rows(evaluation: Evaluation) -> None:
    assert evaluation.oracle is not None
    assert evaluation.oracle.keys() == {"outcome", "good"}
    assert evaluation.oracle["outcome"]["r2"] == pytest.approx(1.0)
    assert evaluation.oracle["good"] == dict.fromkeys(BINARY_METRICS, 1.0)
    assert evaluation.oracle_share("outcome") == pytest.approx(
        evaluation.metrics["outcome"]["r2"], rel=1e-5
    )
    assert evaluation.oracle_share("gappy") is None


def test_groups_are_parts_of_the_whole(evaluation: Evaluation) -> None:
    for table in evaluation.by.values():
        assert sum(entry["rows"] for entry in table.values()) == len(evaluation.targets)
        weighted = sum(entry["rows"] * entry["outcome"]["mae"] for entry in table.values()) / len(
            evaluation.targets
        )
        assert weighted == pytest.approx(evaluation.metrics["outcome"]["mae"])
        assert len({entry["outcome"]["mae"] for entry in table.values()}) == len(table)
        assert all(
            entry["oracle"]["outcome"]["r2"] == pytest.approx(1.0) for entry in table.values()
        )
    assert evaluation.by.keys() == {"real", "patient"}
    assert (
        sum(entry["groups"] for entry in evaluation.by["real"].values())
        == evaluation.num_groups
        == len(evaluation.by["patient"])
    )


def test_metrics_json_has_the_agreed_shape(run: TrainedRun, evaluation: Evaluation) -> None:
    goals = with_goals(run, ef={"mae": 1e9, "r2": 1.0}, opt={"recall": -1.0})
    found = evaluation.to_json(goals)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["test"].keys() == {"outcome", "good", "gappy"}
    assert found["test"]["outcome"].keys() == found["test"]["gappy"].keys() == {*REGRESSION_METRICS}
    assert found["test"]["good"].keys() == {*BINARY_METRICS}
    assert found["oracle"]["outcome"].keys() == {*REGRESSION_METRICS}
    assert found["oracle_share"].keys() == {"outcome"}
    assert found["goals"]["outcome"] == {
        "mae": {"goal": 1e9, "reached": True},
        "r2": {"goal": 1.0, "reached": False},
    }
    assert (found["checkpoint"], found["epoch"], found["standin"], found["num_rows"]) == (
        "best",
        2,
        True,
        len(evaluation.targets),
    )


def test_the_summary_says_what_counts(run: TrainedRun, evaluation: Evaluation) -> None:
    goals = replace(with_goals(run, ef={"mae": 1e9, "rmse": 0.0}), note="Made up.")
    text = summary(goals, evaluation, goals.records)
    lines = {tuple(line.split()[:2]): line for line in reversed(text.splitlines())}
    assert "pass" in lines["outcome", "mae"]
    assert "FAIL" in lines["outcome", "rmse"]
    assert "pass" not in lines["outcome", "r2"]
    for part in ("NOTE  Made up.", "STAND-IN", "mae by real: ", "test rows of"):
        assert part in text
    assert "epochs behind it" not in text
    assert "NOTE  The run has 1 of 2 epochs behind it" in summary(run, evaluation, run.records[:1])
    stopped = [{**run.records[0], "stopped": "callback Enough ended it"}]
    assert "NOTE  The training ended with 1 of 2 epochs behind it: callback Enough ended it." in (
        summary(run, evaluation, stopped)
    )


def test_metrics_have_intervals_over_whole_units(
    run: TrainedRun, cache: Cache, evaluation: Evaluation
) -> None:
    """The test rows are of four patients, too few; of rows there are enough."""
    told = "low, high: none, since the rows are of 4 values of patient, and intervals take 5"
    assert told in summary(run, evaluation, run.records)
    assert evaluation.to_json(run)["confidence"]["reason"] != ""
    alone = replace(run, data=run.data.model_copy(update={"group": None}))
    found = evaluate_run(alone, cache, "test", progress=False, with_baselines=False)
    content = found.to_json(alone)["confidence"]
    assert (content["unit"], content["num_units"], content["reason"]) == ("row", 140, "")
    for column in ("outcome", "gappy"):
        for name, value in found.metrics[column].items():
            low, high = content["metrics"][column][name]
            assert value is not None
            assert low < value < high
    text = summary(alone, found, run.records)
    low, high = found.confidence.of("outcome", "mae") or (0, 0)
    shown = [number(value) for value in (found.metrics["outcome"]["mae"], low, high)]
    assert any(line.split() == ["outcome", "mae", *shown] for line in text.splitlines())
    assert "not for another seed of the training, nor for polymer and partner strings" in text


def test_units_are_what_the_split_leaves_out(run: TrainedRun, cache: Cache) -> None:
    given, chosen = rows_of_cache(run, cache), np.arange(420)
    assert units_of(run, given, chosen).name == "patient"
    np.testing.assert_array_equal(units_of(run, given, chosen).number, given.block.group)
    split = {**run.config["split"], "strategy": "leave_strings_out", "string": "partner"}
    split["stratify_by"] = None
    strings = units_of(replace(run, config={**run.config, "split": split}), given, chosen)
    assert strings.name == "partner"
    np.testing.assert_array_equal(strings.number, given.block.string_id[:, 1])
    nameless = replace(given, layout=given.layout.model_copy(update={"groups": ()}))
    assert units_of(run, nameless, chosen).name == "row"


def test_a_goal_of_an_undefined_metric_is_not_passed(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    nothing = np.full_like(evaluation.targets, np.nan)
    undefined = replace(
        evaluation, metrics=task_metrics(run.tasks, nothing, evaluation.predictions)
    )
    goals = with_goals(run, ef={"r2": 0.5})
    assert list(undefined.verdicts(goals, "outcome")) == [("r2", 0.5, None)]
    assert "undefined" in summary(goals, undefined, goals.records)


def test_what_does_not_belong_together_is_refused(
    run: TrainedRun, cache: Cache, frame: pl.DataFrame, oracle: Path, tmp_path: Path
) -> None:
    other = replace(run, identity={**run.identity, "split.seed": "7"})
    with pytest.raises(StaleCacheError, match=r"split\.seed: 7 -> 0"):
        evaluate_run(other, cache, "test", progress=False)
    perfect = pl.read_parquet(oracle)
    cases = {
        "short.parquet": (perfect.head(5), "has 5 rows, the cache 420"),
        "gaps.csv": (
            perfect.with_columns(outcome=pl.when(pl.int_range(pl.len()) % 2 == 0).then("outcome")),
            "lacks values of outcome",
        ),
        "foreign.parquet": (
            perfect.rename({"outcome": "a", "good": "b"}),
            "none of the columns outcome, good, gappy",
        ),
    }
    for name, (table, message) in cases.items():
        table.write_csv(tmp_path / name) if name.endswith("csv") else table.write_parquet(
            tmp_path / name
        )
        with pytest.raises(RunError, match=message):
            evaluate_run(run, cache, "test", tmp_path / name, progress=False)
    with pytest.raises(RunError, match="there is no oracle"):
        evaluate_run(run, cache, "test", tmp_path / "none.parquet", progress=False)


def test_another_split_never_overwrites_the_test_metrics() -> None:
    files = [evaluation_files(Path("run"), split) for split in ("train", "validation", "test")]
    assert [file.metrics.name for file in files] == [
        "metrics_train.json",
        "metrics_validation.json",
        "metrics.json",
    ]
    assert len({path for of_split in files for path in of_split}) == 9


def test_every_row_is_among_those_of_its_code() -> None:
    codes = np.array([3, 0, 3, 3, 1])
    found = rows_of_each(codes)
    assert list(found) == [0, 1, 3]
    assert {code: rows.tolist() for code, rows in found.items()} == {0: [1], 1: [4], 3: [0, 2, 3]}
    assert rows_of_each(codes[:0]) == {}


def test_the_strings_mean_is_perfect_where_the_strings_decide(
    run: TrainedRun, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = cache.rows()
    targets = rows.targets.copy()
    targets[:, 0] = 0.5 * rows.string_id[:, 0] - 2 * rows.string_id[:, 1]
    of_strings = replace(rows, targets=targets)
    monkeypatch.setattr(
        Cache,
        "rows",
        lambda _, start=0, stop=None: take(of_strings, np.arange(len(targets))[start:stop]),
    )
    found = evaluate_run(run, cache, "test", progress=False)
    assert found.baselines.keys() == {TRAIN_MEAN, STRING_MEAN, BOOSTING}
    best = found.baselines[STRING_MEAN]["outcome"]
    assert best["mae"] == pytest.approx(0, abs=1e-5)
    assert best["r2"] == pytest.approx(1)
    assert found.baselines[BOOSTING]["outcome"]["r2"] > 0.9
    assert found.baselines[TRAIN_MEAN]["outcome"]["r2"] < 0.1
    assert found.metrics["outcome"]["mae"] > 0.1


def test_baselines_are_shown_and_can_be_left_out(
    run: TrainedRun, cache: Cache, evaluation: Evaluation
) -> None:
    shown = evaluation.to_json(run)
    assert shown["baselines"].keys() == {TRAIN_MEAN, STRING_MEAN, BOOSTING}
    assert shown["baselines"][STRING_MEAN].keys() == shown["test"].keys()
    assert shown["baselines"][BOOSTING].keys() == {"outcome", "good"}  # of the largest weight
    assert "Boosting learned from" in shown["baselines_remark"]
    text = summary(run, evaluation, run.records)
    assert all(name in text for name in ("this model", TRAIN_MEAN, STRING_MEAN, BOOSTING))
    plain = evaluate_run(run, cache, "test", progress=False, with_baselines=False)
    assert "baselines" not in plain.to_json(run)
    assert TRAIN_MEAN not in summary(run, plain, run.records)
    assert plain.metrics == evaluation.metrics


def test_the_summary_has_no_columns_that_nothing_stands_in(
    run: TrainedRun, cache: Cache, evaluation: Evaluation
) -> None:
    with_oracle = summary(run, evaluation, run.records).splitlines()
    assert any(
        line.split() == ["target", "metric", "value", "oracle", "share"] for line in with_oracle
    )
    plain = evaluate_run(run, cache, "test", progress=False, with_baselines=False)
    lines = summary(run, plain, run.records).splitlines()
    assert any(line.split() == ["target", "metric", "value"] for line in lines)
    assert "oracle" not in "".join(lines)
