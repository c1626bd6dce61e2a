"""What a config leaves unset fits the train rows; what it says stays, and so does what a run began
with.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from embedcache.errors import RunError
from fusionnet.config.model import ModelConfig, ModelSection
from fusionnet.config.train import TrainConfig, TrainSection
from fusionnet.experiment import load_experiment
from fusionnet.train.fitting import MOST_BATCH, fitted_model, fitted_train
from fusionnet.workflow.training import describe_experiment, train_experiment

STAGE_1_ROWS = 313_236


@given(num_rows=st.integers(0, 10**7))
def test_a_training_has_some_hundred_steps_in_all(num_rows: int) -> None:
    train = fitted_train(TrainSection(), num_rows)
    steps = train.epochs * -(-num_rows // train.batch_rows)
    assert train.batch_rows <= MOST_BATCH
    assert steps >= 200 or num_rows < 100
    assert train.patience < train.epochs


@given(num_rows=st.integers(0, 10**7), heads=st.integers(1, 16))
def test_widths_fit_each_other(num_rows: int, heads: int) -> None:
    for section in (ModelSection(), ModelSection(num_heads=heads)):
        found = fitted_model(section, num_rows)
        assert found.fusion_width % found.num_heads == 0
        assert found.num_heads in (8, heads)
    width = 8 * heads + 1
    assert width % fitted_model(ModelSection(fusion_width=width), num_rows).num_heads == 0


def test_the_specifications_rows_get_the_specifications_numbers() -> None:
    assert fitted_model(ModelSection(), STAGE_1_ROWS) == ModelConfig()
    train = fitted_train(TrainSection(), STAGE_1_ROWS)
    assert (train.batch_rows, train.epochs) == (TrainConfig().batch_rows, TrainConfig().epochs)


def test_what_a_config_says_stays() -> None:
    train = TrainSection(epochs=3, batch_rows=5, early_stopping={"patience": 2, "min_delta": 0.5})
    assert fitted_train(train, 10**6).model_dump() == train.model_dump()
    model = ModelConfig(fusion_width=24, num_heads=3, feedforward=7, num_layers=0)
    assert fitted_model(ModelSection(**model.model_dump()), 10**6) == model


@pytest.fixture
def config(tiny_experiment: Path, tmp_path: Path) -> Path:
    """The tiny experiment, which says nothing of epochs, batches and widths."""
    values = yaml.safe_load(tiny_experiment.read_text())
    del values["model"]
    values["train"] = {"prove": 0, "cpu_threads": 1}
    values["run"]["dir"] = str(tmp_path / "run")
    (tmp_path / "unset.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "unset.yaml"


def test_the_first_lines_say_what_was_fitted_and_where_steps_are_few(config: Path) -> None:
    lines = describe_experiment(load_experiment(config), "x.yaml").splitlines()
    fitted = next(line for line in lines if line.startswith("fitted "))
    assert "train.batch_rows 16, " in fitted
    assert "model.fusion_width 128, " in fitted
    assert not any("which is few" in line for line in lines)
    said = ["train.epochs=5", "train.batch_rows=50", "model.fusion_width=8"]
    text = describe_experiment(load_experiment(config, said), "x.yaml")
    assert "NOTE       15 optimizer steps in all, which is few: lower train.batch_rows (50)" in text
    fitted = next(line for line in text.splitlines() if line.startswith("fitted "))
    assert not re.search(r"train\.(epochs|batch_rows)|fusion_width", fitted)


@pytest.mark.slow
def test_a_run_keeps_what_it_began_with_and_goes_on_for_more_epochs(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*settings: str, **more: Any) -> list[dict[str, Any]]:
        experiment = load_experiment(config, [*SMALL, *settings])
        return train_experiment(experiment, "x.yaml", verbose=False, **more)

    def saved() -> dict[str, Any]:
        return yaml.safe_load((config.parent / "run" / "tiny_config.yaml").read_text())

    first = train("train.epochs=2")
    began = saved()
    assert began["train"]["batch_rows"] == 16
    monkeypatch.setattr("fusionnet.train.fitting.LEAST_BATCH", 64)
    monkeypatch.setattr("fusionnet.train.fitting._NETWORKS", ((0, 8, 1),))
    assert train(resume=True) == first
    assert saved() == began
    records = train("train.epochs=3", resume=True)
    assert records[:2] == first
    assert len(records) == saved()["train"]["epochs"] == 3
    # the cosine is that of three epochs, so rates are higher than at the end of two
    rates = [record["learning_rates"]["network"] for record in records]
    assert rates[1] > 0
    with pytest.raises(RunError, match=r"begun its epoch 3, train\.epochs is 2; give 3 or more"):
        train("train.epochs=2", resume=True)


SMALL = ["model.fusion_width=16", "optim.warmup_epochs=0"]
