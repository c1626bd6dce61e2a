"""A run is evaluated on its own rows after other builds, too, and on other tables; no row that it
was trained on is ever presented as unseen.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.build.decide import Existing, build_cache
from embedcache.build.rotation import rotated
from embedcache.cache.reader import open_cache
from embedcache.errors import MissingCacheError, RunError, StaleCacheError
from fusionnet import RewardModel
from fusionnet.evaluation.evaluate import evaluate_rows, evaluate_run
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import WHOLE
from fusionnet.evaluation.tablerows import rows_of_own_table, rows_of_table
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.evaluating import evaluate_folder, rows_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def run(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture(scope="module")
def evaluation(run: TrainedRun, tiny_experiment: Path) -> Evaluation:
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    return evaluate_run(run, cache, "test", progress=False, with_baselines=False)


def build(experiment: Experiment, existing: Existing = Existing.KEEP) -> None:
    parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
    build_cache(*parts, experiment.cache, existing)


def same(found: Evaluation, wanted: Evaluation) -> None:
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_array_equal(found.targets, wanted.targets)
    np.testing.assert_allclose(found.predictions, wanted.predictions, rtol=1e-6)
    assert found.metrics["outcome"] == pytest.approx(wanted.metrics["outcome"], rel=1e-6)
    assert found.by.keys() == wanted.by.keys()


def test_rows_of_before_an_append_are_those_they_were(
    run: TrainedRun,
    evaluation: Evaluation,
    frame: pl.DataFrame,
    tiny_experiment: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_experiment.parent / "cache.zarr", tmp_path / "cache.zarr")
    more = frame.head(90).with_columns(
        smiles=pl.lit("[*]CCCCCO[*]"), patient=pl.lit("A0"), real=pl.lit(True), x0=pl.lit(50.0)
    )
    more.write_parquet(tmp_path / "more.parquet")
    files = [str(tiny_experiment.parent / "table.parquet"), str(tmp_path / "more.parquet")]
    sets = [f"cache.path={tmp_path}/cache.zarr", f"data.path={json.dumps(files)}"]
    build(load_experiment(tiny_experiment, sets), Existing.APPEND)
    grown = open_cache(tmp_path / "cache.zarr")
    assert grown.layout.num_rows == 510
    assert grown.scaling != run.scaling
    same(evaluate_run(run, grown, "test", progress=False, with_baselines=False), evaluation)
    other = replace(run, identity={**run.identity, "split.seed": "7"})
    with pytest.raises(StaleCacheError, match=r"was trained on .run -> cache.:\n  - split"):
        evaluate_run(other, grown, "test", progress=False)


def test_another_rotation_of_the_cache_changes_nothing(
    run: TrainedRun, evaluation: Evaluation, tiny_experiment: Path
) -> None:
    split = load_experiment(tiny_experiment, ["split.rotation=1"]).split
    view = rotated(open_cache(tiny_experiment.parent / "cache.zarr"), split)
    assert (view.rows().split == 2).sum() == 140
    same(evaluate_run(run, view, "test", progress=False, with_baselines=False), evaluation)


@pytest.fixture
def moved(made_run: Path, tiny_experiment: Path, tmp_path: Path) -> Path:
    """A copy of the run, beside copies of its table and its config."""
    shutil.copytree(made_run, tmp_path / "run")
    for name in ("table.parquet", "tiny.yaml"):
        shutil.copy(tiny_experiment.parent / name, tmp_path / name)
    return tmp_path / "run"


def test_after_another_build_over_its_cache_a_run_reads_its_own_table(
    moved: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    run = load_run(moved)
    config = {**run.config, "cache": {**run.config["cache"], "path": str(tmp_path / "c.zarr")}}
    data = run.data.model_copy(update={"path": str(tmp_path / "table.parquet")})
    run = replace(run, config=config, data=data)
    sets = [f"cache.path={tmp_path}/c.zarr", f"data.path={tmp_path}/table.parquet"]
    build(load_experiment(tmp_path / "tiny.yaml", [*sets, "split.seed=5", "split.folds=4"]))
    rows = rows_for(run, None, ())
    assert "Rows and splits are those of the run's own table" in rows.remark
    assert "split.seed: 0 -> 5" in rows.remark
    same(evaluate_rows(run, rows, "test", progress=False, with_baselines=False), evaluation)
    with pytest.raises(StaleCacheError, match=r"(?s)split\.seed: 0 -> 5.*with --table FILE"):
        rows_for(run, tmp_path / "c.zarr", ())
    table = pl.read_parquet(tmp_path / "table.parquet")
    table.with_columns(outcome=pl.col("outcome") + 1).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(StaleCacheError, match=r"(?s)its table is not there as it was.*--table"):
        rows_for(run, None, ())
    shutil.rmtree(tmp_path / "c.zarr")
    with pytest.raises(MissingCacheError, match=r"say where the cache lies now with --cache PATH"):
        rows_for(run, None, ())


def test_a_table_that_is_split_otherwise_than_in_training_is_refused(
    run: TrainedRun, tiny_experiment: Path
) -> None:
    split = {**run.config["split"], "seed": 3}
    other = replace(run, config={**run.config, "split": split})
    with pytest.raises(RunError, match=r"split otherwise than in training.*--cache PATH"):
        rows_of_own_table(other, [tiny_experiment.parent / "table.parquet"])


def test_another_tables_rows_are_evaluated_without_those_that_trained(
    moved: Path, frame: pl.DataFrame, tiny_experiment: Path, tmp_path: Path
) -> None:
    split = open_cache(tiny_experiment.parent / "cache.zarr").rows().split
    new = frame.head(60).with_columns(x0=pl.col("x0") + 0.5).drop("patient", "real")
    both = pl.concat([frame.drop("patient", "real"), new])
    both.write_csv(tmp_path / "both.csv")
    summary = evaluate_folder(moved, table=[tmp_path / "both.csv"])
    assert "200 table rows" in summary
    assert "without 280 rows with the strings and features of one that the run was" in summary
    content = json.loads((moved / "metrics_table.json").read_text())
    assert content["num_rows"] == 200
    assert "baselines" not in content
    unseen = pl.concat([both.head(420).filter(pl.Series(split == 2)), new])
    predicted = RewardModel.load(moved).predict(unseen)
    by_hand = (unseen["outcome"] - predicted["predicted_outcome"]).abs().mean()
    assert content["table"]["outcome"]["mae"] == pytest.approx(by_hand, rel=1e-5)


def test_of_its_own_table_a_run_is_evaluated_on_its_split(
    moved: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    metrics = json.loads(evaluate_folder(moved, table=[tmp_path / "table.parquet"], as_json=True))
    assert metrics["num_rows"] == 140
    assert metrics["test"]["outcome"] == pytest.approx(evaluation.metrics["outcome"], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "each labelled row of .* is left to evaluate"),
        (
            {name: pl.lit(None, dtype=pl.Float64) for name in ("outcome", "good", "gappy")},
            "has no label of outcome, good, gappy",
        ),
    ],
)
def test_a_table_without_what_could_be_evaluated_is_refused(
    run: TrainedRun,
    frame: pl.DataFrame,
    tiny_experiment: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    own = rows_for(run, tiny_experiment.parent / "cache.zarr", ())
    frame.filter(own.block.split != 2).with_columns(**change).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(RunError, match=message):
        rows_of_table(run, tmp_path / "t.parquet", own)
    with pytest.raises(RunError, match="evaluate other tables one by one"):
        rows_for(run, None, [tmp_path / "t.parquet", tmp_path / "t.parquet"])


def test_where_the_runs_rows_are_not_at_hand_it_says_so(
    run: TrainedRun, frame: pl.DataFrame, tmp_path: Path
) -> None:
    frame.head(30).write_parquet(tmp_path / "t.parquet")
    rows = rows_of_table(run, tmp_path / "t.parquet", None)
    found = evaluate_rows(run, rows, WHOLE, progress=False)
    assert len(found.targets) == 30
    assert "rows that it was trained on may be among them: these are no test rows" in found.remark
