"""Training by the commands that users call: it learns, resumes bitwise, survives kill -9, and
refuses what does not belong together.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from embedcache.build.decide import build_cache
from fusionnet.experiment import load_experiment
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.train.precision import multiplies_bf16

pytestmark = pytest.mark.dist


def train(
    config: Path, *arguments: str, launcher: tuple[str, ...] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [
        *(launcher or (sys.executable,)),
        str(Path(__file__).parents[2] / "jobs" / "train.py"),
        "--config",
        str(config),
        *arguments,
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def weights(folder: Path, moment: str = "final") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"tiny_{moment}.pt")["model_state_dict"]


@pytest.fixture(scope="module")
def four_epochs(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_experiment, "--set", f"run.dir={folder}", "--set", "train.epochs=4")
    return folder


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
    assert load_checkpoint(four_epochs / "tiny_best.pt")["best_val_loss"] == min(
        record["val_loss"] for record in records
    )


def kill_after_first_epoch(config: Path, folder: Path, *arguments: str) -> None:
    """Start a run of four epochs and kill it -9 during the second, or while one of its files is
    written.
    """
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "jobs" / "train.py"),
        "--config",
        str(config),
        "--set",
        f"run.dir={folder}",
        *arguments,
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / "tiny_last.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "tiny_final.pt").exists()


def test_a_killed_run_resumes_to_the_same_bits(
    tiny_experiment: Path, four_epochs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    kill_after_first_epoch(tiny_experiment, folder, "--set", "train.epochs=4")
    train(tiny_experiment, "--set", f"run.dir={folder}", "--set", "train.epochs=4", "--resume")
    for name, value in weights(four_epochs).items():
        assert torch.equal(weights(folder)[name], value), name
    records, whole = (
        json.loads((run / "training_log.json").read_text()) for run in (folder, four_epochs)
    )
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["val_loss"] for record in records] == [record["val_loss"] for record in whole]


def test_auto_precision_is_settled_at_the_start_and_kept_when_the_run_goes_on(
    tiny_experiment: Path, tmp_path: Path
) -> None:
    here, elsewhere = ("bf16", "fp32") if multiplies_bf16(torch.device("cpu")) else ("fp32", "bf16")
    auto = ("--set", "train.precision=auto", "--set", "train.epochs=1")
    done = train(tiny_experiment, *auto, "--set", f"run.dir={tmp_path / 'here'}")
    assert f"micro-batches, {here} (auto), mode" in done.stdout
    assert (
        load_checkpoint(tmp_path / "here" / "tiny_final.pt")["config"]["train"]["precision"] == here
    )
    asked = train(
        tiny_experiment,
        *auto,
        "--set",
        f"run.dir={tmp_path / 'elsewhere'}",
        "--set",
        f"train.precision={elsewhere}",
    )
    assert ("has no instructions for bf16" in asked.stdout) == (elsewhere == "bf16")
    train(tiny_experiment, *auto, "--set", f"run.dir={tmp_path / 'elsewhere'}", "--resume")
    assert load_experiment(tmp_path / "elsewhere" / "tiny_config.yaml").train.precision == elsewhere


@pytest.mark.parametrize(("rows", "zero_stage"), [("resident", 0), ("streaming", 2)])
def test_a_run_killed_inside_epochs_resumes_to_the_same_bits(
    rows: str, zero_stage: int, tiny_experiment: Path, tmp_path: Path
) -> None:
    # 12 steps an epoch, a checkpoint after each, three kills: after a random number of checkpoints,
    # or while one is written.
    chunked = ("--set", f"cache.path={tmp_path / 'cache.zarr'}", "--set", "cache.rows_per_chunk=16")
    experiment = load_experiment(tiny_experiment, list(chunked[1::2]))
    build_cache(
        experiment.data, experiment.targets, experiment.split, experiment.encoder, experiment.cache
    )
    words = (
        *chunked,
        "--set",
        "train.epochs=3",
        "--set",
        "train.batch_rows=12",
        "--set",
        f"train.rows={rows}",
    )
    words += ("--set", f"train.zero_stage={zero_stage}")
    often = (*words, "--set", "train.checkpoint_steps=1")
    train(tiny_experiment, *words, "--set", f"run.dir={tmp_path / 'whole'}")
    folder, generator, resumed_inside = tmp_path / "run", random.Random(rows), 0
    for _ in range(3):
        kill_after_checkpoints(
            tiny_experiment, folder, generator.randrange(1, 7), *often, "--resume"
        )
        resumed_inside += (folder / "tiny_step.pt").exists() and not (
            folder / "tiny_final.pt"
        ).exists()
    assert resumed_inside >= 2
    train(tiny_experiment, *often, "--set", f"run.dir={folder}", "--resume")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(folder)[name], value), name
    records, whole = (
        json.loads((run / "training_log.json").read_text()) for run in (folder, tmp_path / "whole")
    )
    assert [(record["epoch"], record["train_loss"], record["val_loss"]) for record in records] == [
        (record["epoch"], record["train_loss"], record["val_loss"]) for record in whole
    ]
    assert not (folder / "tiny_step.pt").exists()


def kill_after_checkpoints(config: Path, folder: Path, number: int, *arguments: str) -> None:
    """Start or resume a run and kill it -9 when it has written so many checkpoints inside
    epochs.
    """
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "jobs" / "train.py"),
        "--config",
        str(config),
        "--set",
        f"run.dir={folder}",
        *arguments,
    ]
    file, seen = folder / "tiny_step.pt", set()
    with contextlib.suppress(FileNotFoundError):
        seen.add(file.stat().st_mtime_ns)
    process = subprocess.Popen(
        command,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    while len(seen) <= number and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.001)
    process.kill()
    process.wait()


def test_an_order_of_rows_changes_after_whole_epochs_only(
    tiny_experiment: Path, tmp_path: Path
) -> None:
    words = ("--set", "train.batch_rows=12", "--set", "train.checkpoint_steps=1")
    kill_after_checkpoints(tiny_experiment, tmp_path / "run", 2, *words)
    content = load_checkpoint(tmp_path / "run" / "tiny_step.pt")
    assert content["order"] == "resident"
    save_checkpoint(
        tmp_path / "run" / "tiny_step.pt",
        {**content, "order": "streaming, 7 rows per chunk, 4 chunks per buffer"},
    )
    done = train(
        tiny_experiment, "--set", f"run.dir={tmp_path / 'run'}", *words, "--resume", check=False
    )
    assert done.returncode == 2
    assert (
        "order of rows: streaming, 7 rows per chunk, 4 chunks per buffer -> resident" in done.stderr
    )


def test_a_run_of_one_rank_resumes_on_two(tiny_experiment: Path, tmp_path: Path) -> None:
    quiet = (
        "train.epochs=4",
        "train.checkpoint_steps=1",
        "model.dropout=0",
        "encoder.lora.dropout=0",
        *(f"tasks.{task}.head_dropout=0" for task in range(3)),
    )
    arguments = tuple(word for value in quiet for word in ("--set", value))
    train(tiny_experiment, "--set", f"run.dir={tmp_path / 'whole'}", *arguments)
    kill_after_first_epoch(tiny_experiment, tmp_path / "run", *arguments)
    launcher = (
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc-per-node",
        "2",
        "--master-port",
        "29613",
    )
    train(
        tiny_experiment,
        "--set",
        f"run.dir={tmp_path / 'run'}",
        *arguments,
        "--resume",
        launcher=launcher,
    )
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert whole.keys() == found.keys()
    for name, value in whole.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=1e-3,
            atol=2e-5,
            msg=lambda message, name=name: f"{name}: {message}",
        )


def test_two_ranks_by_each_launcher(tiny_experiment: Path, tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    launchers = {
        "deepspeed": (
            str(bin_folder / "deepspeed"),
            "--num_accelerators",
            "2",
            "--master_port",
            "29611",
        ),
        "torchrun": (
            str(bin_folder / "torchrun"),
            "--nproc-per-node",
            "2",
            "--master-port",
            "29612",
        ),
    }
    states = {}
    for name, launcher in launchers.items():
        arguments = (
            "--set",
            f"run.dir={tmp_path / name}",
            "--set",
            "train.epochs=1",
            "--set",
            "train.micro_batch_rows=16",
        )
        done = train(tiny_experiment, *arguments, launcher=launcher)
        assert "2 rank(s) x 2 micro-batches" in done.stdout
        states[name] = weights(tmp_path / name)
    for name, value in states["deepspeed"].items():
        assert torch.equal(states["torchrun"][name], value), name


def test_srun_starts_ranks_as_torchrun_does(tiny_experiment: Path, tmp_path: Path) -> None:
    arguments = ("--set", "train.epochs=1", "--set", "train.micro_batch_rows=16")
    launcher = (
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc-per-node",
        "2",
        "--master-port",
        "29614",
    )
    train(
        tiny_experiment, "--set", f"run.dir={tmp_path / 'torchrun'}", *arguments, launcher=launcher
    )
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "jobs" / "train.py"),
        "--config",
        str(tiny_experiment),
        *arguments,
    ]
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_JOB_ID": "9615",
    }
    environment = {**os.environ, **step, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, "--set", f"run.dir={tmp_path / 'srun'}"],
            env={**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    for name, value in weights(tmp_path / "torchrun").items():
        assert torch.equal(weights(tmp_path / "srun")[name], value), name


def test_what_does_not_belong_together_is_refused(tiny_experiment: Path, four_epochs: Path) -> None:
    for arguments, message in [
        ((), "holds an earlier run"),
        (("--resume", "--set", "optim.lr=0.5"), "optim.lr: 0.001 -> 0.5"),
        (("--set", "encoder.pooling=mean"), "encoder.pooling: mean -> cls"),
        (("--set", "cache.path=none.zarr"), "none.zarr"),
        (("--set", "train.zero_stage=3", "--overwrite"), "zero_stage 3 is not supported"),
        (("--set", "train.epohcs=3"), "did you mean 'epochs'"),
    ]:
        done = train(
            tiny_experiment,
            "--set",
            f"run.dir={four_epochs}",
            "--set",
            "train.epochs=4",
            *arguments,
            check=False,
        )
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_tiny_table_can_be_overfitted(tiny_experiment: Path, tmp_path: Path) -> None:
    quiet = [
        "model.dropout=0",
        "encoder.lora.dropout=0",
        *(f"tasks.{task}.head_dropout=0" for task in range(3)),
    ]
    fast = [
        "optim.lr=0.004",
        "optim.lr_encoder=0.002",
        "optim.weight_decay=0",
        "train.epochs=60",
        f"run.dir={tmp_path / 'run'}",
    ]
    train(tiny_experiment, *[word for value in (*quiet, *fast) for word in ("--set", value)])
    records = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert records[-1]["train_loss_ef"] < 0.1 * records[0]["train_loss_ef"]
    assert records[-1]["train_loss_opt"] < 0.1 * records[0]["train_loss_opt"]
    assert records[-1]["train_loss_aux"] < 0.1 * records[0]["train_loss_aux"]


# with ZeRO, DeepSpeed finds out; without, Engine does
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_non_finite_loss_stops_before_the_update(
    tiny_experiment: Path, tmp_path: Path, zero_stage: int
) -> None:
    values = (
        f"run.dir={tmp_path / 'run'}",
        "optim.lr=1e30",
        "optim.warmup_epochs=0",
        "optim.clip=1e30",
        f"train.zero_stage={zero_stage}",
    )
    done = train(
        tiny_experiment, *[word for value in values for word in ("--set", value)], check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NaN or infinite" in done.stderr
    assert "table rows [" in done.stderr


def test_summary_trains_nothing(tiny_experiment: Path, tmp_path: Path) -> None:
    done = train(tiny_experiment, "--summary", "--set", f"run.dir={tmp_path / 'run'}")
    assert "string adapter polymer" in done.stdout
    assert "STAND-IN" in done.stdout
    assert not (tmp_path / "run").exists()
