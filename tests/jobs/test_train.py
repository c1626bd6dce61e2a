"""Training by the commands that users call: it learns, resumes bitwise, survives kill -9, and
refuses what does not belong together.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import LAUNCHERS, Done, Fork, Forks, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedcache.encoder.standin import write_standin
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.listing import LIST, LOCK, foreign_files
from fusionnet.runfolder.lock import locked
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.train.precision import multiplies_bf16
from fusionnet.trained.run import load_run
from fusionnet.workflow.building import build_experiment

pytestmark = pytest.mark.dist
TRAIN = Path(__file__).parents[2] / "jobs" / "train.py"
FAULTY = Path(__file__).with_name("faulty_train.py")
NO_DROPOUT = (
    "model.dropout=0",
    "encoder.lora.dropout=0",
    *(f"tasks.{task}.head_dropout=0" for task in range(3)),
)


def settings(*values: str) -> list[str]:
    """Return the words that set these values."""
    return [word for value in values for word in ("--set", value)]


class Command:
    """`python jobs/train.py` for one config, in a fork."""

    def __init__(self, forks: Forks, config: Path) -> None:
        self.forks, self.words = forks, (TRAIN, "--config", config)

    def __call__(self, *words: str, code: int = 0) -> Done:
        """Return how it ended, which must be with this exit code."""
        return self.forks.run(*self.words, *words, code=code)

    def start(self, *words: str) -> Fork:
        """Return the running command."""
        return self.forks.start(*self.words, *words)


@pytest.fixture
def train(forks: Forks, tiny_experiment: Path) -> Command:
    return Command(forks, tiny_experiment)


def weights(folder: Path, moment: str = "final") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"tiny_{moment}.pt")["model_state_dict"]


MEASURED = ("seconds", "rows_per_s", "peak_rss_bytes")


def losses(folder: Path) -> list[dict[str, object]]:
    """Return what a run's log says of its epochs, without what time and machine decide."""
    return [
        {key: value for key, value in record.items() if key not in MEASURED}
        for record in json.loads((folder / "training_log.json").read_text())
    ]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run, likewise."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not any(name in tag for name in MEASURED)
    }


FOUR = ("train.epochs=4", "train.batch_rows=16")  # of 9 steps: long enough to be interrupted


@pytest.fixture(scope="module")
def four_epochs(
    forks: Forks, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    words = settings(f"run.dir={folder}", *FOUR, "train.prove=1")
    Command(forks, tiny_experiment)(*words)
    return folder


@pytest.mark.xdist_group("four_epochs")
def test_a_run_leaves_what_the_specification_names(four_epochs: Path) -> None:
    assert {path.name for path in four_epochs.iterdir()} >= {
        "tiny_best.pt",
        "tiny_final.pt",
        "tiny_config.yaml",
        "tokenizer",
        "training_log.json",
        "adapter",
        "network.safetensors",
        "README.md",
        "tensorboard",
    }
    records = json.loads((four_epochs / "training_log.json").read_text())
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert {
        "train_loss",
        "val_loss",
        "val_error",
        "ef_mae",
        "ef_r2",
        "opt_auroc",
        "opt_f1",
        "seconds",
        "rows_per_s",
    } <= records[0].keys()
    checkpoint = load_checkpoint(four_epochs / "tiny_final.pt")
    assert {
        "epoch",
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "loss_module_state_dict",
        "best_val_loss",
        "metrics",
        "config",
    } <= (checkpoint.keys())
    last = load_checkpoint(four_epochs / "tiny_last.pt")
    assert last["optimizer_state_dict"]["exp_avg"].keys() == checkpoint["model_state_dict"].keys()
    assert checkpoint["optimizer_state_dict"] == {}, "the moments are for going on, from last alone"
    assert load_checkpoint(four_epochs / "tiny_best.pt")["best_val_loss"] == min(
        record["val_loss"] for record in records
    )


def kill_after_first_epoch(train: Command, folder: Path, *words: str) -> None:
    """Start a run of four epochs and kill it -9 during the second, or while one of its files is
    written.
    """
    run = train.start(*settings(f"run.dir={folder}"), *words)
    wait_until((folder / "tiny_last.pt").exists, run)
    run.kill()
    assert not (folder / "tiny_final.pt").exists()


@pytest.mark.xdist_group("four_epochs")
def test_a_killed_run_resumes_to_the_same_bits(
    train: Command, four_epochs: Path, tmp_path: Path
) -> None:
    folder, words = tmp_path / "run", settings(*FOUR)
    kill_after_first_epoch(train, folder, *words)
    train(*settings(f"run.dir={folder}"), *words, "--resume")
    for name, value in weights(four_epochs).items():
        assert torch.equal(weights(folder)[name], value), name
    records, whole = (
        json.loads((run / "training_log.json").read_text()) for run in (folder, four_epochs)
    )
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["val_loss"] for record in records] == [record["val_loss"] for record in whole]


@pytest.mark.xdist_group("four_epochs")
def test_a_run_that_is_told_to_stop_goes_on_to_the_same_bits(
    train: Command, four_epochs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = settings(f"run.dir={folder}", *FOUR)
    run = train.start(*words)
    wait_until((folder / "tiny_last.pt").exists, run)
    os.kill(run.process.pid, signal.SIGTERM)
    done = run.wait()
    assert done.code == 143, done
    said = re.search(r"stopped by SIGTERM; (.*) holds all up to (.*); go on with", done.err)
    assert said is not None, done.err
    reached = load_checkpoint(Path(said[1]))
    assert said[2] == (
        f"step {reached['step']} of 9 in epoch {reached['epoch'] + 1}"
        if reached["step"]
        else f"epoch {reached['epoch']} of 4"
    )
    train(*words, "--resume")
    for name, value in weights(four_epochs).items():
        assert torch.equal(weights(folder)[name], value), name


@pytest.mark.xdist_group("four_epochs")
def test_a_run_on_a_full_disk_goes_on_to_the_same_bits(
    train: Command, forks: Forks, tiny_experiment: Path, four_epochs: Path, tmp_path: Path
) -> None:
    words = settings(f"run.dir={tmp_path / 'run'}", *FOUR)
    done = forks.run(FAULTY, "full", "--config", tiny_experiment, *words, code=2)
    said = done.err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'run' / 'tiny_last.pt'}: File too large (")
    assert "training with --resume" in said
    assert "Traceback" not in done.err
    assert load_checkpoint(tmp_path / "run" / "tiny_last.pt")["epoch"] in (1, 2)
    train(*words, "--resume")
    for name, value in weights(four_epochs).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name


def test_auto_precision_is_settled_at_the_start_and_kept_when_the_run_goes_on(
    train: Command, tmp_path: Path
) -> None:
    here, elsewhere = ("bf16", "fp32") if multiplies_bf16(torch.device("cpu")) else ("fp32", "bf16")
    auto = settings("train.precision=auto", "train.epochs=1")
    done = train(*auto, *settings(f"run.dir={tmp_path / 'here'}"))
    assert f"micro-batches, {here} (auto), mode" in done.out
    settled = load_checkpoint(tmp_path / "here" / "tiny_final.pt")["config"]["train"]["precision"]
    assert settled == here
    there = settings(f"run.dir={tmp_path / 'elsewhere'}")
    asked = train(*auto, *there, *settings(f"train.precision={elsewhere}"))
    assert ("has no instructions for bf16" in asked.out) == (elsewhere == "bf16")
    train(*auto, *there, "--resume")
    assert load_experiment(tmp_path / "elsewhere" / "tiny_config.yaml").train.precision == elsewhere


@pytest.mark.parametrize(("rows", "zero_stage"), [("resident", 0), ("streaming", 2)])
def test_a_run_killed_inside_epochs_resumes_to_the_same_bits(
    rows: str, zero_stage: int, tiny_experiment: Path, train: Command, tmp_path: Path
) -> None:
    # 6 steps an epoch, a checkpoint after each, two kills: after a random number of checkpoints, or
    # while one is written. Kills before each file operation: fusionnet/train/test_resume.py
    chunked = (f"cache.path={tmp_path / 'cache.zarr'}", "cache.rows_per_chunk=32")
    experiment = load_experiment(tiny_experiment, list(chunked))
    build_experiment(experiment)
    trained = ("train.epochs=2", "train.batch_rows=24", f"train.rows={rows}")
    words = settings(*chunked, *trained, f"train.zero_stage={zero_stage}")
    often = (*words, *settings("train.checkpoint_steps=1"))
    train(*words, *settings(f"run.dir={tmp_path / 'whole'}"))
    folder, generator, resumed_inside = tmp_path / "run", random.Random(rows), 0
    for _ in range(2):
        kill_after_checkpoints(train, folder, generator.randrange(1, 4), *often, "--resume")
        resumed_inside += (folder / "tiny_step.pt").exists() and not (
            folder / "tiny_final.pt"
        ).exists()
    assert resumed_inside >= 1
    train(*often, *settings(f"run.dir={folder}"), "--resume")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(folder)[name], value), name
    records, whole = (
        json.loads((run / "training_log.json").read_text()) for run in (folder, tmp_path / "whole")
    )
    assert [(record["epoch"], record["train_loss"], record["val_loss"]) for record in records] == [
        (record["epoch"], record["train_loss"], record["val_loss"]) for record in whole
    ]
    assert not (folder / "tiny_step.pt").exists()


def kill_after_checkpoints(train: Command, folder: Path, number: int, *words: str) -> None:
    """Start or resume a run and kill it -9 when it has written so many checkpoints inside
    epochs.
    """
    file, seen = folder / "tiny_step.pt", set()
    with contextlib.suppress(FileNotFoundError):
        seen.add(file.stat().st_mtime_ns)
    run = train.start(*settings(f"run.dir={folder}"), *words)
    while len(seen) <= number and run.is_alive:
        with contextlib.suppress(FileNotFoundError):
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.001)
    run.kill()


def test_an_order_of_rows_changes_after_whole_epochs_only(train: Command, tmp_path: Path) -> None:
    words = settings("train.batch_rows=12", "train.checkpoint_steps=1")
    kill_after_checkpoints(train, tmp_path / "run", 2, *words)
    file, other = (
        tmp_path / "run" / "tiny_step.pt",
        "streaming, 7 rows per chunk, 4 chunks per buffer",
    )
    content = load_checkpoint(file)
    assert content["order"] == "resident"
    save_checkpoint(file, {**content, "order": other})
    done = train(*settings(f"run.dir={tmp_path / 'run'}"), *words, "--resume", code=2)
    assert f"order of rows: {other} -> resident" in done.err


def test_a_run_goes_on_with_other_numbers_of_ranks(
    train: Command, forks: Forks, tiny_experiment: Path, tmp_path: Path
) -> None:
    # one rank, killed; three ranks, killed; two ranks to the end
    words = settings("train.epochs=4", "train.checkpoint_steps=1", *NO_DROPOUT)
    train(*settings(f"run.dir={tmp_path / 'whole'}"), *words)
    folder = tmp_path / "run"
    kill_after_first_epoch(train, folder, *words)
    resumed = ("--config", tiny_experiment, *settings(f"run.dir={folder}"), *words, "--resume")
    last = folder / "tiny_last.pt"
    before = last.stat().st_mtime_ns
    ranks = forks.start_ranks(TRAIN, 3, *resumed)
    wait_until(lambda: last.stat().st_mtime_ns != before, ranks[0])
    for rank in ranks:
        rank.kill()
    assert load_checkpoint(last)["epoch"] < 4
    forks.run_ranks(TRAIN, 2, *resumed)
    whole, found = weights(tmp_path / "whole"), weights(folder)
    assert whole.keys() == found.keys()
    for name, value in whole.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=1e-3,
            atol=2e-5,
            msg=lambda message, name=name: f"{name}: {message}",
        )


@pytest.mark.slow
def test_ranks_leave_parts_out_as_one_process_does(
    forks: Forks, tiny_experiment: Path, tmp_path: Path
) -> None:
    keys = ["calibration.folds=2", "encoder.mode=frozen", "train.epochs=2", *NO_DROPOUT]
    keys += ["split.folds=6", "split.train_folds=4", "split.validation_folds=1"]
    keys += [f"cache.path={tmp_path / 'cache.zarr'}"]
    build_experiment(load_experiment(tiny_experiment, keys))
    for count, name in ((1, "one"), (2, "two")):
        words = settings(*keys, f"run.dir={tmp_path / name}")
        forks.run_ranks(TRAIN, count, "--config", tiny_experiment, *words)
    one, two = (load_run(tmp_path / name).calibration for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.folds == two.folds == 2
    for task, own in one.scores.items():
        assert two.scores[task].pooled == pytest.approx(own.pooled, rel=1e-2), task
        assert two.scores[task].num_rows == own.num_rows
    assert not (tmp_path / "two" / "left_out").exists()


TWO_RANKS = settings("train.epochs=1", "train.micro_batch_rows=16")
PROVEN = {"deepspeed": ("train.prove=1",), "torchrun": ()}  # and so no proof may move a weight


@pytest.fixture(scope="module")
def by_launchers(
    forks: Forks, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The runs that each launcher's two ranks train, in fresh interpreters: forks, which must give
    the same bits below, share the seed of Python's hashes.
    """
    folder, found = tmp_path_factory.mktemp("launchers"), {}
    for name in LAUNCHERS:
        words = (*settings(f"run.dir={folder / name}", *PROVEN[name]), *TWO_RANKS)
        done = forks.launch(name, TRAIN, "--config", tiny_experiment, *words).wait()
        assert done.code == 0, done
        assert "2 rank(s) x 2 micro-batches" in done.out
        found[name] = folder / name
    return found


@pytest.mark.xdist_group("launchers")
def test_two_ranks_by_each_launcher(by_launchers: dict[str, Path]) -> None:
    for name, value in weights(by_launchers["deepspeed"]).items():
        assert torch.equal(weights(by_launchers["torchrun"])[name], value), name


@pytest.mark.xdist_group("launchers")
def test_srun_starts_ranks_as_torchrun_does(
    forks: Forks,
    tiny_experiment: Path,
    by_launchers: dict[str, Path],
    tmp_path: Path,
) -> None:
    words = (*settings(f"run.dir={tmp_path / 'srun'}"), *TWO_RANKS)
    forks.run_ranks(TRAIN, 2, "--config", tiny_experiment, *words, launcher="srun")
    for name, value in weights(by_launchers["torchrun"]).items():
        assert torch.equal(weights(tmp_path / "srun")[name], value), name


@pytest.mark.xdist_group("launchers")
def test_ranks_agree_on_the_step_or_the_batch_after_which_they_stop(
    forks: Forks,
    tiny_experiment: Path,
    by_launchers: dict[str, Path],
    tmp_path: Path,
) -> None:
    words = ("--config", tiny_experiment, *settings(f"run.dir={tmp_path / 'run'}"), *TWO_RANKS)
    ranks = forks.start_ranks(FAULTY, 2, "told", *words)
    done = [rank.wait() for rank in ranks]  # rank 1 was told, by a signal in its second step
    assert [rank.code for rank in done] == [143, 143], done
    assert "stopped with another rank; " in done[0].err
    assert "holds all up to step 2 of 3 in epoch 1" in done[0].err
    assert "stop" not in done[1].err
    assert load_checkpoint(tmp_path / "run" / "tiny_step.pt")["step"] == 2
    # and in its third batch of validation, which is rank 0's last but some
    few = settings("train.eval_batch_rows=3")
    ranks = forks.start_ranks(FAULTY, 2, "validating", *words, "--resume", *few)
    done = [rank.wait() for rank in ranks]
    assert [rank.code for rank in done] == [143, 143], done
    assert "holds all up to step 3 of 3 in epoch 1" in done[0].err
    forks.run_ranks(TRAIN, 2, *words, "--resume")
    assert losses(tmp_path / "run") == losses(by_launchers["torchrun"])
    assert "val_loss" in curves(tmp_path / "run")
    assert curves(tmp_path / "run") == curves(by_launchers["torchrun"])
    for moment in ("best", "final"):
        for name, value in weights(by_launchers["torchrun"], moment).items():
            assert torch.equal(weights(tmp_path / "run", moment)[name], value), (moment, name)


@pytest.mark.xdist_group("four_epochs")
def test_what_does_not_belong_together_is_refused(train: Command, four_epochs: Path) -> None:
    elsewhere = ("--set", f"run.dir={four_epochs.with_name('elsewhere')}")
    for words, message in [
        ((), "holds an earlier run"),
        (("--resume", "--set", "optim.lr=0.5"), "optim.lr: 0.001 -> 0.5"),
        (("--set", "encoder.pooling=mean", *elsewhere), "encoder.pooling: mean -> cls"),
        (("--set", "cache.path=none.zarr", *elsewhere), "none.zarr"),
        (("--set", "train.zero_stage=3", "--overwrite"), "zero_stage 3 is not supported"),
        (("--set", "train.epohcs=3"), "did you mean 'epochs'"),
    ]:
        done = train(*settings(f"run.dir={four_epochs}", *FOUR), *words, code=2)
        assert message in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize("size", [1, 2])
def test_a_folder_in_which_somebody_trains_is_refused_on_every_rank(
    size: int, forks: Forks, tiny_experiment: Path, tmp_path: Path
) -> None:
    script = TRAIN.parents[1] / "tests" / "jobs" / "impatient_train.py"
    words = ("--config", tiny_experiment, *settings(f"run.dir={tmp_path / 'run'}"))
    with locked(tmp_path / "run"):
        for rank in forks.start_ranks(script, size, *words):
            done = rank.wait()
            assert done.code == 2
            assert f"being trained in by process {os.getpid()} on" in done.err
            assert "Traceback" not in done.err
    assert not (tmp_path / "run" / LIST).exists()


def test_the_old_run_goes_when_the_first_step_of_the_new_one_is_done(
    train: Command, made_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(made_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    here = settings(f"run.dir={folder}", "train.epochs=1")
    done = train(*here, "--overwrite", "--set", "train.deepspeed_config=none.json", code=2)
    assert "none.json" in done.err
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}
    assert found == before, "a run that cannot start leaves the old one whole"
    train(*here, "--overwrite", "--set", "run.name=other")
    assert not list(folder.glob("tiny_*"))
    assert load_run(folder).name == "other"
    assert foreign_files(folder) == []


def test_a_tiny_table_can_be_overfitted(train: Command, tmp_path: Path) -> None:
    fast = ("optim.lr=0.004", "optim.lr_encoder=0.002", "optim.weight_decay=0", "train.epochs=36")
    # many steps, few validations; of which the loss rises
    often = ("train.batch_rows=24", "train.early_stopping.patience=36")
    train(*settings(*NO_DROPOUT, *fast, *often, f"run.dir={tmp_path / 'run'}"))
    records = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert records[-1]["train_loss_ef"] < 0.1 * records[0]["train_loss_ef"]
    assert records[-1]["train_loss_opt"] < 0.1 * records[0]["train_loss_opt"]
    assert records[-1]["train_loss_aux"] < 0.1 * records[0]["train_loss_aux"]


# with ZeRO, DeepSpeed finds out; without, torch's own update is skipped
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_non_finite_loss_stops_before_the_update(
    forks: Forks, tiny_experiment: Path, tmp_path: Path, zero_stage: int
) -> None:
    words = settings(f"train.zero_stage={zero_stage}", f"run.dir={tmp_path / 'run'}")
    done = forks.run(FAULTY, "nan", "--config", tiny_experiment, *words, code=2)
    assert "NaN or infinite" in done.err
    assert "table rows [" in done.err


def test_summary_trains_nothing(train: Command, tmp_path: Path) -> None:
    done = train("--summary", *settings(f"run.dir={tmp_path / 'run'}"))
    assert "string adapter polymer" in done.out
    assert "STAND-IN" in done.out
    assert "specification" not in done.out  # that of another model
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stage_1_is_shown_beside_its_specification(
    forks: Forks, repository: Path, tmp_path: Path
) -> None:
    write_standin(tmp_path / "encoder", "polybert")
    jobs, config = repository / "jobs", repository / "configs" / "stage1.yaml"
    table = tmp_path / "cohort.parquet"
    forks.run(jobs / "make_cohort.py", "--out", table, "--rows-per-patient", 2)
    words = ["--config", config, *settings(f"data.path={table}")]
    words += settings(f"encoder.source={tmp_path / 'encoder'}", f"cache.path={tmp_path / 'c.zarr'}")
    forks.run(jobs / "build_cache.py", *words)
    lines = forks.run(jobs / "train.py", *words, "--summary").out.splitlines()
    assert lines[-1].split()[-3:] == ["~88M", "/", "~2.3M"]
    assert any(line.split() == ["head", "stress", "65,793", "65,793", "65.7K"] for line in lines)
