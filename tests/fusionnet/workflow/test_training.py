"""Training in a program of one's own: quiet, without DeepSpeed, with callbacks that may end it, and
continued by the commands.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError
from embedcache.text import number
from fusionnet import Callback, RewardModel, StopTraining
from fusionnet.evaluation import beside
from fusionnet.evaluation.baselines import BOOSTING, STRING_MEAN, TRAIN_MEAN
from fusionnet.evaluation.beside import beside_training
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.train import loop
from fusionnet.train.checkpoint import load_checkpoint
from fusionnet.train.monitor import best_epoch
from fusionnet.train.trainer import Trainer
from fusionnet.train.validation import string_tables
from fusionnet.trained.run import load_run
from fusionnet.workflow.training import train_experiment

TRAIN = Path(__file__).parents[3] / "jobs" / "train.py"


class Watch(Callback):
    """Notes what it is told, and ends the training after some epochs."""

    def __init__(self, most: int, by_raising: bool = False) -> None:
        self.most, self.by_raising = most, by_raising
        self.told: list[Any] = []

    def on_train_begin(self) -> None:
        self.told.append("begin")

    def on_epoch_end(self, record: dict[str, Any]) -> bool:
        self.told.append(record["epoch"])
        if self.by_raising and record["epoch"] == self.most:
            raise StopTraining("it is good enough")
        return record["epoch"] == self.most

    def on_train_end(self) -> None:
        self.told.append("end")


class EndAlone:
    """Has one of a callback's methods, and is no `Callback`."""

    ended = False

    def on_train_end(self) -> None:
        self.ended = True


@pytest.fixture
def experiment(tiny_experiment: Path, tmp_path: Path) -> Experiment:
    return load_experiment(tiny_experiment, [f"run.dir={tmp_path / 'run'}", "train.epochs=3"])


@pytest.fixture
def _no_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that imports DeepSpeed cannot be imported."""
    monkeypatch.setitem(sys.modules, "fusionnet.train.engine", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_deepspeed")
@pytest.mark.parametrize("by_raising", [False, True])
def test_a_callback_ends_a_quiet_training_as_if_it_were_its_last_epoch(
    experiment: Experiment, capfd: pytest.CaptureFixture[str], by_raising: bool
) -> None:
    watch, other = Watch(2, by_raising), EndAlone()
    before, random = dict(os.environ), torch.random.get_rng_state()
    records = train_experiment(experiment, "tiny.yaml", callbacks=[watch, other], verbose=False)
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert watch.told == ["begin", 1, 2, "end"]
    assert other.ended
    reason = "it is good enough" if by_raising else "callback Watch ended it"
    assert [record.get("stopped") for record in records] == [None, reason]
    folder = Path(experiment.run.dir)
    assert load_run(folder, "final").epoch == 2
    assert f"The training ended early: {reason}." in (folder / "README.md").read_text()
    RewardModel.load(folder)


@pytest.mark.dist
def test_a_run_begun_in_python_is_continued_under_a_launcher_and_the_other_way_round(
    experiment: Experiment, tiny_experiment: Path, forks: Forks, tmp_path: Path
) -> None:
    def settings(name: str) -> list[str]:
        return [f"run.dir={tmp_path / name}", "train.epochs=3"]

    def launched(name: str, *words: str) -> None:
        sets = [word for value in settings(name) for word in ("--set", value)]
        rank = forks.run_ranks(TRAIN, 1, "--config", tiny_experiment, *sets, *words)[0]
        assert "DeepSpeed, ZeRO stage 0" in rank.out

    def here(name: str, **more: Any) -> None:
        train_experiment(load_experiment(tiny_experiment, settings(name)), "tiny.yaml", **more)

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_checkpoint(tmp_path / name / "tiny_final.pt")["model_state_dict"]

    here("whole", verbose=False)
    here("begun", verbose=False, callbacks=[Watch(1)])
    launched("begun", "--resume")
    here("again", verbose=False, callbacks=[Watch(2)])
    here("again", verbose=False, resume=True)
    launched("launched")
    for name, value in weights("whole").items():
        assert torch.equal(weights("again")[name], value), name
        assert torch.allclose(weights("begun")[name], value, rtol=1e-3, atol=1e-5), name
        assert torch.allclose(weights("launched")[name], value, rtol=1e-3, atol=1e-5), name


def test_what_is_no_callback_is_refused(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=r"EndAlone is a class; give an object: EndAlone\(\)"):
        train_experiment(experiment, "tiny.yaml", callbacks=[EndAlone])
    with pytest.raises(ConfigError, match="callback 3 has none of the methods on_train_begin"):
        train_experiment(experiment, "tiny.yaml", callbacks=[3])


@pytest.mark.slow
def test_the_baselines_stand_below_the_epochs(
    tiny_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"run.dir={tmp_path / 'run'}", "train.baselines=true"]
    experiment = load_experiment(tiny_experiment, settings)
    records = train_experiment(experiment, "tiny.yaml")
    printed = capsys.readouterr().out
    best = records[best_epoch(records) - 1]
    table = printed[printed.index("140 validation rows ") :].splitlines()
    assert table[0].split()[3:] == ["ef_mae", "ef_r2", "opt_auroc", "opt_f1"]
    own = table[1].split()
    assert own[:2] == ["epoch", str(best["epoch"])]
    assert float(own[2]) == pytest.approx(best["ef_mae"], rel=1e-2)
    assert [line.split("  ")[0] for line in table[2:5]] == [TRAIN_MEAN, STRING_MEAN, BOOSTING]
    run = load_run(tmp_path / "run")
    cache = open_cache(experiment.cache.path)
    evaluated = evaluate_run(run, cache, "validation", progress=False).baselines
    for line, name in zip(table[2:5], (TRAIN_MEAN, STRING_MEAN, BOOSTING), strict=True):
        assert line.split()[-4] == number(evaluated[name]["outcome"]["mae"])


def test_a_large_table_has_no_baselines_and_says_so(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "MOST_ROWS", 100)
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    assert (
        "no baselines: the table has more than 100 rows" in beside_training(cache, [], {}, False)[0]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_no_deepspeed")
def test_an_epoch_encodes_all_strings_once_and_keeps_what_its_last_step_made_of_them(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[torch.Tensor]] = []
    trainers: list[Trainer] = []

    def counted(trainer: Trainer) -> list[torch.Tensor]:
        trainers.append(trainer)
        made.append(string_tables(trainer))
        return made[-1]

    monkeypatch.setattr(loop, "string_tables", counted)
    train_experiment(experiment, "tiny.yaml", verbose=False)
    assert len(made) == 3
    last = load_checkpoint(Path(experiment.run.dir) / "tiny_last.pt")["vectors"]
    assert all(torch.equal(kept, table) for kept, table in zip(last.values(), made[2], strict=True))
    assert not torch.equal(made[1][0], made[2][0])
    at_the_end = string_tables(trainers[-1])  # no step has been taken since
    assert all(torch.equal(one, other) for one, other in zip(at_the_end, made[2], strict=True))
