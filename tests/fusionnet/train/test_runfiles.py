"""A run's files are written in order, beside the training, and a failure reaches it."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionnet.train.checkpoint import load_checkpoint
from fusionnet.train.runfiles import BackgroundWriter, RunFiles
from fusionnet.train.runlog import RunLog
from fusionnet.yamlfile import read_yaml


class Log(RunLog):
    """Notes the epochs that it is told of, and whether their checkpoint was there."""

    def __init__(self, files: RunFiles) -> None:
        self.files, self.seen = files, []

    def append(self, run_id: str, record: dict[str, Any]) -> None:
        epoch = load_checkpoint(self.files.checkpoint("last"))["epoch"]
        self.seen.append((record["epoch"], epoch, self.files.checkpoint("step").exists()))

    def show(self, record: dict[str, Any]) -> None:
        pass


def test_work_is_done_in_order_beside_its_caller_and_one_piece_ahead() -> None:
    writer, done, gate = BackgroundWriter(), [], threading.Event()

    def first() -> None:
        gate.wait(20)
        done.append(1)

    writer.submit(first)
    assert done == []  # the caller goes on
    gate.set()
    writer.submit(lambda: done.append(2))
    assert 1 in done, "the first is done before the second is taken"
    writer.wait()
    assert done == [1, 2]


def test_what_a_piece_of_work_raises_reaches_the_next_call() -> None:
    def fail() -> None:
        raise OSError("no space left")

    writer = BackgroundWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="no space"):
        writer.submit(lambda: None)
    writer.submit(fail)
    with pytest.raises(OSError, match="no space"):
        writer.wait()
    writer.wait()


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_writing(tmp_path: Path) -> None:
    def train(*, fails: bool) -> None:
        with RunFiles(tmp_path / "gone", "run", {}, {}) as files:
            files.publish_step({"epoch": 0})
            if fails:
                raise ValueError("training")

    with pytest.raises(ValueError, match="training"):
        train(fails=True)
    with pytest.raises(FileNotFoundError):
        train(fails=False)


def test_the_log_never_knows_of_an_epoch_whose_checkpoint_is_not_there(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "run", {"train": {"monitor": "val_loss"}}, {})
    log, records = Log(files), [{"val_loss": loss} for loss in (3.0, 2.0, 2.5)]
    with files:
        for epoch in (1, 2, 3):
            files.publish_step({"epoch": epoch - 1, "weights": torch.full((1000,), float(epoch))})
            content = {"epoch": epoch, "records": records[:epoch]}
            files.publish_epoch(content, log, {"epoch": epoch}, improved=epoch < 3)
    files.publish_end()
    assert log.seen == [(1, 1, False), (2, 2, False), (3, 3, False)]
    epochs = {name: load_checkpoint(files.checkpoint(name))["epoch"] for name in ("best", "final")}
    assert epochs == {"best": 2, "final": 3}


def test_the_written_config_is_read_back_unchanged(tmp_path: Path) -> None:
    config = {"data": {"strings": [{"column": "next\x85line\u2028end", "name": "a"}]}}
    RunFiles(tmp_path, "tiny", config, {}).begin()
    assert read_yaml(tmp_path / "tiny_config.yaml") == config
