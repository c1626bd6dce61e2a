"""Every tracker has each epoch of a run once, whatever was resumed, in one tracked run."""

import csv
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from embedcache.errors import ConfigError, RunError
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.listing import foreign_files, read_listing
from fusionnet.train import trackers
from fusionnet.train.trackers import CSV, numbers_of
from fusionnet.workflow.training import train_experiment

Records = list[dict[str, Any]]


class Run:
    """A run of the tiny experiment with one tracker, which goes on for another epoch."""

    def __init__(self, config: Path, folder: Path, tracker: str) -> None:
        self.config, self.folder, self.tracker = config, folder, tracker

    def train(self, epochs: int, **more: Any) -> Records:
        settings = [f"run.dir={self.folder}", f"train.epochs={epochs}"]
        experiment = load_experiment(self.config, [*settings, f"train.trackers=[{self.tracker}]"])
        return train_experiment(experiment, "x.yaml", verbose=False, **more)

    @property
    def run_id(self) -> str:
        listing = read_listing(self.folder)
        assert listing is not None
        return listing.run_id


@pytest.fixture
def run(request: pytest.FixtureRequest, tiny_experiment: Path, tmp_path: Path) -> Run:
    return Run(tiny_experiment, tmp_path / "run", request.param)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    """Put a module in the place of a library that need not be installed."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("run", ["csv"], indirect=True)
def test_a_csv_has_a_line_per_epoch_also_after_resuming(run: Run) -> None:
    run.train(1)
    records = run.train(3, resume=True)
    with (run.folder / CSV).open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["epoch"]) for line in lines] == [1, 2, 3]
    for line, record in zip(lines, records, strict=True):
        numbers = numbers_of(record)
        assert "learning_rates.network" in numbers
        assert {key: float(text) for key, text in line.items() if text} == numbers
    assert not (run.folder / "tensorboard").exists()
    assert foreign_files(run.folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("run", ["wandb"], indirect=True)
def test_weights_and_biases_is_offline_and_goes_on_in_the_same_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, Any], int]] = []
    ends: list[int] = []

    def init(**words: Any) -> SimpleNamespace:
        begun.append(words)
        (Path(words["dir"]) / "wandb").mkdir(exist_ok=True)
        (Path(words["dir"]) / "wandb" / "debug.log").touch()
        return SimpleNamespace(
            log=lambda numbers, step: logged.append((numbers, step)), finish=lambda: ends.append(1)
        )

    monkeypatch.delenv("WANDB_MODE", raising=False)
    stand_in(monkeypatch, "wandb", init=init, Settings=dict, Error=OSError)
    run.train(1)
    records = run.train(2, resume=True)
    assert [(words["mode"], words["id"], words["name"]) for words in begun] == [
        ("offline", run.run_id, "tiny")
    ] * 2
    assert begun[0]["config"]["train"]["batch_rows"] == 64
    assert logged == [(numbers_of(record), record["epoch"]) for record in records]
    assert ends == [1, 1]
    # what its library writes is the run's own, and is deleted with it
    assert foreign_files(run.folder) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (run.folder / "wandb" / "old.log").touch()
    run.train(1, overwrite=True)
    assert begun[-1]["mode"] == "disabled"
    assert not (run.folder / "wandb" / "old.log").exists()


@pytest.mark.parametrize("run", ["wandb"], indirect=True)
def test_what_weights_and_biases_refuses_is_said_with_the_way_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(Exception):
        """As the library raises."""

    def init(**words: Any) -> None:
        raise Refused("no API key")

    stand_in(monkeypatch, "wandb", init=init, Settings=dict, Error=Refused)
    with pytest.raises(RunError, match=r"no API key; set WANDB_MODE=offline"):
        run.train(1)


@pytest.mark.parametrize("run", ["wandb", "mlflow"], indirect=True)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    message = rf"names {run.tracker}, which needs {run.tracker}.*fusionnet\[{run.tracker}\]"
    with pytest.raises(ConfigError, match=message):
        run.train(1)
    assert not run.folder.exists()


@pytest.mark.parametrize("run", ["wandb"], indirect=True)
def test_the_real_weights_and_biases_writes_one_run_offline(run: Run) -> None:
    pytest.importorskip("wandb")
    run.train(1)
    run.train(2, resume=True)
    files = list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{run.run_id}.wandb"}
    assert foreign_files(run.folder) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, by MLflow
@pytest.mark.parametrize("run", ["mlflow"], indirect=True)
def test_the_real_mlflow_has_each_epoch_of_one_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    run.train(1)
    records = run.train(2, resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{run.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fusionnet").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.data.params["train.batch_rows"] == "64"
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "val_loss")
    assert [(each.step, each.value) for each in history] == [
        (record["epoch"], pytest.approx(record["val_loss"])) for record in records
    ]
    assert foreign_files(run.folder) == []
    assert not (tmp_path / "mlruns").exists()
