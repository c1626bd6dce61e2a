"""Cross-validation: each fold is what a build and a training of its own would give; a kill at any
moment goes on; every row is tested once.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from embedcache.cache.reader import open_cache
from embedcache.errors import RunError, SplitError, UserError
from fusionnet.commands import cross_validate as command
from fusionnet.evaluation.crossvalidation import CrossValidation
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.trained.run import load_run
from fusionnet.workflow import cross_validating
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.cross_validating import cross_validate
from fusionnet.workflow.training import train_experiment

pytestmark = pytest.mark.slow


def study(config: Path, folder: Path, *changes: str) -> Experiment:
    sets = [f"run.dir={folder}", "encoder.mode=frozen", *changes]
    return load_experiment(config, sets)


def validated(experiment: Experiment, **options: Any) -> CrossValidation:
    return cross_validate(experiment, with_baselines=False, verbose=False, **options)


@pytest.fixture(scope="module")
def found(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """A cross-validation of three folds; tests read it and copy it, never change it."""
    return validated(study(tiny_experiment, tmp_path_factory.mktemp("cv") / "all"))


def test_each_fold_is_a_build_and_a_training_of_its_own(
    tiny_experiment: Path, found: CrossValidation, tmp_path: Path
) -> None:
    for fold in found.folds:
        rotation = fold.rotation
        changes = [f"split.rotation={rotation}", f"cache.path={tmp_path}/{rotation}.zarr"]
        own = study(tiny_experiment, tmp_path / f"run{rotation}", *changes)
        build_experiment(own)
        train_experiment(own, "config", verbose=False)
        run = load_run(tmp_path / f"run{rotation}")
        mine = load_run(found.folder / f"fold_{rotation}")
        assert mine.scaling == run.scaling
        assert mine.identity == run.identity
        for record, other in zip(mine.records, run.records, strict=True):
            assert record["val_loss"] == pytest.approx(other["val_loss"], rel=1e-6)
        alone = evaluate_run(
            run, open_cache(own.cache.path), "test", progress=False, with_baselines=False
        )
        tested = found.predictions.filter(pl.col("fold") == rotation)
        assert tested["row"].to_list() == alone.rows.tolist()
        for column, metrics in alone.metrics.items():
            assert fold.metrics[column] == pytest.approx(metrics, rel=1e-6)


def test_every_row_is_predicted_once_by_a_model_that_never_saw_it(found: CrossValidation) -> None:
    predictions = found.predictions
    assert predictions["row"].to_list() == list(range(420))
    assert sorted(predictions["fold"].unique()) == [0, 1, 2]
    cache = open_cache(load_run(found.folder / "fold_0").config["cache"]["path"])
    group = pl.Series(cache.rows().group)
    by_group = predictions.with_columns(group=group).group_by("group")
    of_group = by_group.agg(pl.col("fold").n_unique())
    assert of_group["fold"].to_list() == [1] * 12, "no patient is in two folds"
    targets = pl.Series(cache.rows().targets[:, 0]).cast(pl.Float64)
    assert predictions["observed_outcome"].equals(targets.alias("observed_outcome"))


def test_mean_and_spread_are_those_of_the_folds(found: CrossValidation) -> None:
    values = pl.Series([fold.metrics["outcome"]["mae"] for fold in found.folds])
    assert found.mean["outcome"]["mae"] == pytest.approx(values.mean())
    assert found.sd["outcome"]["mae"] == pytest.approx(values.std())
    content = json.loads((found.folder / "metrics.json").read_text())
    assert content["mean"] == found.mean
    assert [fold["num_test"] for fold in content["folds"]] == [140, 140, 140]
    assert "outcome  mae" in found.summary()


@pytest.mark.parametrize("moment", ["in training", "before the note"])
def test_a_kill_goes_on_where_it_was(
    tiny_experiment: Path,
    found: CrossValidation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    experiment = study(tiny_experiment, tmp_path / "cv")
    trained: list[int] = []
    real_train, real_evaluate = train_experiment, cross_validating._evaluated

    def train(own: Experiment, *arguments: Any) -> Any:
        trained.append(own.split.rotation)
        return real_train(own, *arguments)

    def killed_in_training(bar: Any, record: dict[str, Any]) -> None:
        if len(trained) == 2 and record["epoch"] == 2:
            raise KeyboardInterrupt

    def killed_after(folder: Path, cache: Any, rotation: int, *rest: Any) -> Any:
        result = real_evaluate(folder, cache, rotation, *rest)
        if rotation == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(cross_validating, "train_experiment", train)
    with monkeypatch.context() as patch:
        if moment == "in training":
            patch.setattr(cross_validating._EpochBar, "on_epoch_end", killed_in_training)
        else:
            patch.setattr(cross_validating, "_evaluated", killed_after)
        with pytest.raises(KeyboardInterrupt):
            validated(experiment)
    with pytest.raises(RunError, match="go on with it by --resume, delete it by --overwrite"):
        validated(experiment)
    with pytest.raises(RunError, match=r"of another config .*\n  - optim\.lr: 0\.001 -> 0\.01\n"):
        validated(study(tiny_experiment, tmp_path / "cv", "optim.lr=0.01"), resume=True)
    result = validated(experiment, resume=True)
    assert trained == [0, 1, 1, 2], "what was finished is not done again"
    assert result.predictions.equals(found.predictions)
    assert result.mean == found.mean
    assert validated(experiment, resume=True).mean == found.mean
    assert len(trained) == 4


def test_overwrite_deletes_what_a_cross_validation_wrote_alone(
    found: CrossValidation, tiny_experiment: Path, tmp_path: Path
) -> None:
    shutil.copytree(found.folder, tmp_path / "cv")
    experiment = study(tiny_experiment, tmp_path / "cv", "train.epochs=1")
    (tmp_path / "cv" / "fold_1" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"fold_1 holds notes\.txt, which no cross-validation wrote"):
        validated(experiment, overwrite=True)
    assert (tmp_path / "cv" / "fold_0" / "tiny_best.pt").is_file()
    (tmp_path / "cv" / "fold_1" / "notes.txt").unlink()
    result = validated(experiment, overwrite=True)
    assert [fold.epoch for fold in result.folds] == [1, 1, 1]
    with pytest.raises(RunError, match=r"holds no cross-validation, but"):
        validated(study(tiny_experiment, tmp_path))


def test_a_damaged_note_is_refused(
    found: CrossValidation, tiny_experiment: Path, tmp_path: Path
) -> None:
    shutil.copytree(found.folder, tmp_path / "cv")
    (tmp_path / "cv" / "cross_validation.json").write_text("{")
    with pytest.raises(RunError, match="is damaged; restore it, or begin anew with --overwrite"):
        validated(study(tiny_experiment, tmp_path / "cv"), resume=True)


@pytest.fixture
def with_table(tiny_experiment: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Make the experiment of another table, with another split."""

    def make(frame: pl.DataFrame, **split: Any) -> Experiment:
        frame.write_parquet(tmp_path / "table.parquet")
        values = yaml.safe_load(tiny_experiment.read_text())
        values["data"]["path"] = str(tmp_path / "table.parquet")
        values["data"] |= {"group": None, "stratum": None, "report_by": []}
        values["split"] = split
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
        return study(tmp_path / "c.yaml", tmp_path / "cv", f"cache.path={tmp_path}/c.zarr")

    return make


def test_over_time_the_oldest_rows_are_tested_in_no_fold(
    with_table: Callable, tiny_experiment: Path
) -> None:
    table = yaml.safe_load(tiny_experiment.read_text())["data"]["path"]
    frame = pl.read_parquet(table).with_columns(when=pl.int_range(pl.len()))
    result = validated(with_table(frame, strategy="time", column="when", folds=4))
    assert [fold.num_train for fold in result.folds] == [210, 105], "an expanding window"
    predictions = result.predictions
    assert predictions["fold"].null_count() == 210
    assert predictions.filter(pl.col("fold") == 0)["row"].to_list() == list(range(315, 420))
    assert "210 of 420 rows test in no fold" in result.summary()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"strategy": "column", "column": "own"},
            r"'column' cannot be cross-validated.*\(strategy folds\)",
        ),
        (
            {"strategy": "random", "folds": 5, "train_folds": 2},
            r"2 test folds do not divide 5 folds: set train_folds and validation_folds so",
        ),
    ],
)
def test_splits_without_rotations_are_refused(
    with_table: Callable, tiny_experiment: Path, split: dict[str, Any], message: str
) -> None:
    table = yaml.safe_load(tiny_experiment.read_text())["data"]["path"]
    own = pl.Series("own", ["train", "val", "test"] * 140)
    with pytest.raises(SplitError, match=message):
        validated(with_table(pl.read_parquet(table).with_columns(own), **split))


def test_several_ranks_are_refused(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="is one process: start it without a launcher"):
        validated(study(tiny_experiment, tmp_path / "cv"))


def test_the_command_prints_json(
    found: CrossValidation,
    tiny_experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = [f"--set=run.dir={found.folder}", "--set=encoder.mode=frozen"]
    arguments = ["cross-validate", f"--config={tiny_experiment}", *sets, "--resume", "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert json.loads(capsys.readouterr().out)["mean"] == found.mean
