"""A run killed before any of its file operations and resumed ends as the run that nobody killed:
best, final, log, TensorBoard, and not a file more. What is not the run's own is not resumed from.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deaths import run_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedcache.errors import RunError, StaleCacheError
from fusionnet.config.tasks import Task
from fusionnet.config.train import TrainConfig
from fusionnet.recipe import Recipe
from fusionnet.rows.plan import StepPlan
from fusionnet.runfolder.listing import LIST, foreign_files, read_listing
from fusionnet.train import loop
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.train.monitor import best_epoch
from fusionnet.train.plain import PlainEngine
from fusionnet.train.resume import Position
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.runlog import LOG
from fusionnet.train.trainer import Trainer
from fusionnet.train.world import World

LOSSES = (3.0, 1.0, 2.0)  # of the epochs; the second is the best
TASKS = [Task(name="ef", column="outcome")]
IDENTITY = {"table": "sha256 aa", "split.seed": "0"}
CONFIG: dict[str, Any] = {
    **{part: {} for part in ("data", "encoder", "loss")},
    "train": {"epochs": len(LOSSES), "monitor": "val_loss", "trackers": ["tensorboard"]},
    "tasks": [{"name": "ef", "column": "outcome"}],
    "split": {"strategy": "random"},
    "cache": {"path": "cache.zarr"},
}
Train = Callable[..., None]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Training without a model: epochs of two steps, a checkpoint between them, by `train_run`."""

    def run_epoch(trainer: Any, position: Position, files: RunFiles) -> loop.Epoch:
        if position.epoch == 0 and position.step == 0:
            files.begin()
        inside = Position(position.epoch, 1, position.records, position.best)
        files.publish_step(content(trainer, inside, files, []))
        epoch = position.epoch + 1
        loss = trainer.losses[position.epoch]
        record = {"epoch": epoch, "val_loss": loss, "train_loss": 9.0, "seconds": 1.0}
        return loop.Epoch(record, [])

    def content(
        trainer: Any, position: Position, files: RunFiles, tables: list[torch.Tensor]
    ) -> dict[str, Any]:
        return {
            "epoch": position.epoch,
            "step": position.step,
            "records": position.records,
            "best_val_loss": position.best,
            "epoch_losses": None,
            "epoch_seconds": 0.0,
            "gradient_norm": 0.0,
            "order": "resident",
            "config": files.config,
            "model_state_dict": {},
            "optimizer_state_dict": {
                "step": position.step,
                "exp_avg": {},
                "exp_avg_sq": {},
                "loss_scaler": {},
            },
            "layout": "",
            "scaling": "",
            "strings": {},
            "vectors": {},
            "run_id": files.run_id,
            **files.shareable,
        }

    monkeypatch.setattr(loop, "run_epoch", run_epoch)
    monkeypatch.setattr(loop, "_content", content)
    monkeypatch.setattr(PlainEngine, "load_state", lambda engine, state: None)

    def train(
        folder: Path,
        resume: bool = False,
        losses: tuple[float | None, ...] = LOSSES,
        identity: dict[str, str] = IDENTITY,
        **config: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        trainer = Trainer.__new__(Trainer)
        world = World.__new__(World)
        vars(world).update(rank=0, size=1, device=torch.device("cpu"))
        engine = PlainEngine.__new__(PlainEngine)
        vars(engine).update(model=torch.nn.Module(), world=world)
        recipe = Recipe.__new__(Recipe)
        vars(recipe).update(tasks=TASKS, train=TrainConfig(epochs=len(losses), prove=0))
        vars(trainer).update(
            engine=engine,
            train_rows=SimpleNamespace(order="resident"),
            world=world,
            recipe=recipe,
            plan=StepPlan(1, 1, 1, 1, 0),
            losses=losses,
        )
        values = {**CONFIG, **config}
        loop.train_run(trainer, RunFiles(folder, "tiny", values, {"identity": identity}), resume)

    return train


def left(folder: Path) -> dict[str, Any]:
    """Return what a run has left, without its id and the seconds of its events."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    moments = ("best", "final", "last")
    checkpoints = {name: load_checkpoint(folder / f"tiny_{name}.pt") for name in moments}
    has_moments = {name: bool(each["optimizer_state_dict"]) for name, each in checkpoints.items()}
    assert has_moments == {"best": False, "final": False, "last": True}
    return {
        "epochs": {name: each["epoch"] for name, each in checkpoints.items()},
        "log": json.loads((folder / LOG).read_text()),
        "events": {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        },
        "config": (folder / "tiny_config.yaml").read_text(),
        "files": sorted(path.name for path in folder.iterdir()),
        "foreign": foreign_files(folder),
    }


@pytest.fixture
def whole(train: Train, tmp_path: Path) -> dict[str, Any]:
    train(tmp_path / "whole")
    return left(tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_before_any_file_operation_is_not_seen_after_resume(
    train: Train, whole: dict[str, Any], tmp_path: Path
) -> None:
    assert whole["epochs"] == {"best": 2, "final": 3, "last": 3}
    assert whole["events"]["val_loss"] == [(1, 3.0), (2, 1.0), (3, 2.0)]
    assert whole["foreign"] == []
    for number in count():
        folder = tmp_path / str(number)
        died = run_until(partial(train, folder), number)
        train(folder, resume=True)
        assert left(folder) == whole, f"killed before operation {number}"
        if not died:
            break
    assert number > 80, "the operations of a training are no longer counted"


@pytest.mark.slow
def test_a_resumed_run_may_be_killed_again(
    train: Train, whole: dict[str, Any], tmp_path: Path
) -> None:
    assert run_until(partial(train, tmp_path / "begun"), 75)  # in the second epoch
    for number in count(step=3):
        folder = shutil.copytree(tmp_path / "begun", tmp_path / str(number))
        died = run_until(partial(train, folder, resume=True), number)
        train(folder, resume=True)
        assert left(folder) == whole, f"killed before operation {number}"
        if not died:
            break
    assert number > 40


@pytest.mark.slow
def test_a_kill_while_a_run_replaces_another_leaves_the_one_or_the_other(
    train: Train, whole: dict[str, Any], tmp_path: Path
) -> None:
    train(tmp_path / "old", losses=(5.0, 4.0, 3.0, 2.0))
    old, kept = left(tmp_path / "old"), 0
    for number in range(0, 45, 2):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(number))
        before = read_listing(folder)
        assert run_until(partial(train, folder), number)
        after = read_listing(folder)
        assert before is not None
        assert after is not None
        is_old = before.run_id == after.run_id
        if is_old:
            kept += 1
            assert left(folder)["epochs"] == old["epochs"]
        train(folder, resume=not is_old)
        assert left(folder) == whole, f"killed before operation {number}"
    assert 0 < kept < 15


def test_what_a_kill_cut_off_in_the_log_or_the_events_is_written_again(
    train: Train, whole: dict[str, Any], tmp_path: Path
) -> None:
    train(tmp_path / "run")
    log, events = tmp_path / "run" / LOG, tmp_path / "run" / "tensorboard"
    for content in (
        b"",
        b"[",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"\0" * 99,
        b'[{"epoch": 1}]',
        b"[" * 9999,
    ):
        log.write_bytes(content)
        train(tmp_path / "run", resume=True)
        assert left(tmp_path / "run") == whole, content
    last = max(events.iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    log.write_text(json.dumps(whole["log"][:2]))
    train(tmp_path / "run", resume=True)
    assert left(tmp_path / "run") == whole


def test_a_finished_run_resumed_twice_leaves_nothing_behind(
    train: Train, whole: dict[str, Any], tmp_path: Path
) -> None:
    train(tmp_path / "run")
    for _ in range(2):
        train(tmp_path / "run", resume=True)
        assert left(tmp_path / "run") == whole


def test_another_cache_is_refused_with_the_differences(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = left(tmp_path / "run")
    with pytest.raises(StaleCacheError, match=r"table: sha256 aa -> sha256 bb\n") as caught:
        train(tmp_path / "run", resume=True, identity={**IDENTITY, "table": "sha256 bb"})
    assert "split.seed" not in str(caught.value)
    assert left(tmp_path / "run") == before
    # elsewhere it may lie
    train(tmp_path / "run", resume=True, cache={"path": "elsewhere.zarr"})


def test_a_checkpoint_of_another_run_is_not_resumed_from(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run")
    train(tmp_path / "other")
    for moment in ("last", "step"):
        shutil.copytree(tmp_path / "run", tmp_path / moment)
        target = tmp_path / moment / f"tiny_{moment}.pt"
        shutil.copy(tmp_path / "other" / "tiny_last.pt", target)
        with pytest.raises(RunError, match=f"tiny_{moment}.pt is a checkpoint of another run"):
            train(tmp_path / moment, resume=True)
    # a copy of the whole folder is the same run
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    train(tmp_path / "copy", resume=True)


def test_a_run_without_its_last_checkpoint_is_neither_resumed_nor_begun_anew(
    train: Train, tmp_path: Path
) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / "tiny_last.pt").unlink()
    with pytest.raises(RunError, match=r"tiny_last\.pt is gone.*no state of the optimizer"):
        train(tmp_path / "run", resume=True)
    best = tmp_path / "run" / "tiny_best.pt"
    assert load_checkpoint(best)["epoch"] == 2
    # who copies it to the missing one's name would go on without the moments
    shutil.copy(best, tmp_path / "run" / "tiny_last.pt")
    with pytest.raises(RunError, match=r"tiny_last\.pt has no state of the optimizer, as best and"):
        train(tmp_path / "run", resume=True)
    train(tmp_path / "best_last", losses=(3.0, 1.0))
    final = tmp_path / "best_last" / "tiny_final.pt"
    assert final.samefile(tmp_path / "best_last" / "tiny_best.pt"), "one file, where they are equal"


def test_best_is_not_written_from_a_last_checkpoint_of_another_epoch(
    train: Train, tmp_path: Path
) -> None:
    train(tmp_path / "run", losses=(3.0, 1.0))
    best, last = tmp_path / "run" / "tiny_best.pt", tmp_path / "run" / "tiny_last.pt"
    content = load_checkpoint(last)
    save_checkpoint(tmp_path / "run" / "tiny_step.pt", {**content, "step": 1})
    save_checkpoint(last, {**content, "epoch": 1, "records": content["records"][:1]})
    train(tmp_path / "run", resume=True, losses=(3.0, 1.0))
    assert load_checkpoint(best)["epoch"] == 2


def test_the_best_epoch_is_the_first_of_the_lowest_loss() -> None:
    def best(*losses: float | None) -> int:
        return best_epoch([{"val_loss": loss} for loss in losses])

    assert [best(3, 1, 2), best(1, 1), best(2, float("nan"), 1)] == [2, 1, 3]
    assert best() == best(float("nan")) == 0
    assert best(None, None) == 2, "without a validation label the last epoch is the best"


@pytest.mark.slow
def test_a_run_without_validation_labels_is_resumed_like_any_other(
    train: Train, tmp_path: Path
) -> None:
    nothing = (None, None, None)
    train(tmp_path / "whole", losses=nothing)
    whole = left(tmp_path / "whole")
    assert whole["epochs"] == {"best": 3, "final": 3, "last": 3}
    assert [record["val_loss"] for record in whole["log"]] == [None] * 3
    assert "val_loss" not in whole["events"]
    for number in range(3, 80, 7):
        folder = tmp_path / str(number)
        assert run_until(partial(train, folder, losses=nothing), number)
        train(folder, resume=True, losses=nothing)
        assert left(folder) == whole, f"killed before operation {number}"


def test_a_run_begins_after_its_first_step_alone(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise RunError("out of memory")

    monkeypatch.setattr(loop, "run_epoch", fail)
    with pytest.raises(RunError, match="out of memory"):
        train(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert LIST not in {path.name for path in tmp_path.iterdir()}
