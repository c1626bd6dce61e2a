"""The best epoch, and the end of a training without a better one, are functions of its records."""

from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import ConfigError
from fusionnet.config.train import TrainConfig
from fusionnet.experiment import load_experiment
from fusionnet.train.checkpoint import load_checkpoint
from fusionnet.train.monitor import best_epoch, stopped_early
from fusionnet.trained.run import load_run
from fusionnet.workflow.training import train_experiment


def records(monitor: str, *values: float | None) -> list[dict[str, Any]]:
    return [{monitor: value} for value in values]


def ends_after(monitor: str, *values: float | None, patience: int, min_delta: float = 0) -> int:
    """Return the epoch after which a training of these values ends; 0 where none ends it."""
    stopping = {"patience": patience, "min_delta": min_delta}
    train = TrainConfig(epochs=len(values), monitor=monitor, early_stopping=stopping)
    whole = records(monitor, *values)
    ends = [end for end in range(1, len(whole)) if stopped_early(whole[:end], train)]
    return ends[0] if ends else 0


def test_whether_more_or_less_is_better_follows_from_the_metric() -> None:
    values = (1.0, 3.0, 0.5)
    for monitor in ("val_loss", "val_error", "tg_mae", "tg_log10_rmse"):
        assert best_epoch(records(monitor, *values), monitor) == 3
    for monitor in ("tg_r2", "good_auroc"):
        assert best_epoch(records(monitor, *values), monitor) == 2


def test_an_epoch_without_a_value_is_never_the_best_unless_none_has_one() -> None:
    assert best_epoch(records("a_auroc", None, 0.5, None), "a_auroc") == 2
    assert best_epoch(records("a_auroc", None, None), "a_auroc") == 2


def test_training_ends_after_so_many_epochs_without_a_better_one() -> None:
    falling = (5.0, 4.0, 4.5, 4.1, 3.0, 3.5, 3.5, 3.5, 1.0)
    assert ends_after("val_loss", *falling, patience=2) == 4
    assert ends_after("val_loss", *falling, patience=3) == 8
    assert ends_after("val_loss", *falling, patience=4) == 0
    assert ends_after("a_r2", *falling, patience=3) == 4
    slowly = (1.0, 0.9, 0.8, 0.7, 0.6)
    assert ends_after("val_loss", *slowly, patience=1) == 0
    assert ends_after("val_loss", *slowly, patience=2, min_delta=0.15) == 0  # 0.8 and 0.6 are
    assert ends_after("val_loss", *slowly, patience=2, min_delta=0.25) == 3
    assert ends_after("val_loss", None, None, None, None, patience=1) == 0


@pytest.mark.slow
def test_the_monitored_metric_decides_which_epoch_is_kept_and_when_training_ends(
    tiny_experiment: Path, tmp_path: Path
) -> None:
    settings = [f"run.dir={tmp_path / 'run'}", "train.epochs=12", "train.monitor=aux_r2"]
    impatient, patient = (f"train.early_stopping={{patience: {most}}}" for most in (1, 20))

    def train(stopping: str, resume: bool = False) -> list[dict[str, Any]]:
        experiment = load_experiment(tiny_experiment, [*settings, stopping])
        return train_experiment(experiment, "x.yaml", verbose=False, resume=resume)

    found = train(impatient)
    assert 1 < len(found) < 12
    assert "aux_r2 has not become better than" in found[-1]["stopped"]
    best = load_run(tmp_path / "run").epoch
    assert best == len(found) - 1
    assert found[best - 1]["aux_r2"] == max(record["aux_r2"] for record in found)
    assert load_run(tmp_path / "run", "final").epoch == len(found)
    assert train(impatient, resume=True) == found, "it stays ended"
    more = train(patient, resume=True)
    assert more[: len(found)] == found
    assert len(more) == 12
    assert load_checkpoint(tmp_path / "run" / "tiny_final.pt")["epoch"] == 12


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(tiny_experiment: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"names 'ef_auroc', .*val_loss, val_error, ef_mae, ef_rmse, ef_r2,"
    ):
        load_experiment(tiny_experiment, ["train.monitor=ef_auroc"])
