"""Training by the commands that users call: it learns, resumes bitwise, survives kill -9, and refuses what does not belong together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fusionnet.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.dist


def train(config: Path, *arguments: str, launcher: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or (sys.executable,)), str(Path(__file__).parents[2] / "jobs" / "train.py"), "--config", str(config), *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
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
        "tiny_best.pt", "tiny_final.pt", "tiny_config.yaml", "tokenizer", "training_log.json", "adapter", "network.safetensors", "README.md", "tensorboard",
    }  # fmt: skip
    records = json.loads((four_epochs / "training_log.json").read_text())
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert {"train_loss", "val_loss", "ef_mae", "ef_r2", "opt_auroc", "opt_f1", "seconds", "rows_per_s"} <= records[0].keys()
    checkpoint = load_checkpoint(four_epochs / "tiny_final.pt")
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "loss_module_state_dict", "best_val_loss", "metrics", "config"} <= (
        checkpoint.keys()
    )
    assert load_checkpoint(four_epochs / "tiny_best.pt")["best_val_loss"] == min(record["val_loss"] for record in records)


def kill_after_first_epoch(config: Path, folder: Path, *arguments: str) -> None:
    """Start a run of four epochs and kill it -9 during the second, or while one of its files is written."""
    command = [sys.executable, str(Path(__file__).parents[2] / "jobs" / "train.py"), "--config", str(config), "--set", f"run.dir={folder}", *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "tiny_last.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "tiny_final.pt").exists()


def test_a_killed_run_resumes_to_the_same_bits(tiny_experiment: Path, four_epochs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_after_first_epoch(tiny_experiment, folder, "--set", "train.epochs=4")
    train(tiny_experiment, "--set", f"run.dir={folder}", "--set", "train.epochs=4", "--resume")
    for name, value in weights(four_epochs).items():
        assert torch.equal(weights(folder)[name], value), name
    records, whole = (json.loads((run / "training_log.json").read_text()) for run in (folder, four_epochs))
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["val_loss"] for record in records] == [record["val_loss"] for record in whole]


def test_a_run_of_one_rank_resumes_on_two(tiny_experiment: Path, tmp_path: Path) -> None:
    quiet = ("train.epochs=4", "model.dropout=0", "encoder.lora.dropout=0", *(f"tasks.{task}.head_dropout=0" for task in range(3)))
    arguments = tuple(word for value in quiet for word in ("--set", value))
    train(tiny_experiment, "--set", f"run.dir={tmp_path / 'whole'}", *arguments)
    kill_after_first_epoch(tiny_experiment, tmp_path / "run", *arguments)
    launcher = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--master-port", "29613")
    train(tiny_experiment, "--set", f"run.dir={tmp_path / 'run'}", *arguments, "--resume", launcher=launcher)
    whole, found = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert whole.keys() == found.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=lambda message, name=name: f"{name}: {message}")


def test_two_ranks_by_each_launcher(tiny_experiment: Path, tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    launchers = {
        "deepspeed": (str(bin_folder / "deepspeed"), "--num_accelerators", "2", "--master_port", "29611"),
        "torchrun": (str(bin_folder / "torchrun"), "--nproc-per-node", "2", "--master-port", "29612"),
    }
    states = {}
    for name, launcher in launchers.items():
        arguments = ("--set", f"run.dir={tmp_path / name}", "--set", "train.epochs=1", "--set", "train.micro_batch_rows=16")
        done = train(tiny_experiment, *arguments, launcher=launcher)
        assert "2 rank(s) x 2 micro-batches" in done.stdout
        states[name] = weights(tmp_path / name)
    for name, value in states["deepspeed"].items():
        assert torch.equal(states["torchrun"][name], value), name


def test_what_does_not_belong_together_is_refused(tiny_experiment: Path, four_epochs: Path) -> None:
    for arguments, message in [
        ((), "holds an earlier run"),
        (("--resume", "--set", "optim.lr=0.5"), "optim.lr: 0.001 -> 0.5"),
        (("--set", "encoder.pooling=mean"), "encoder.pooling: mean -> cls"),
        (("--set", "cache.path=none.zarr"), "none.zarr"),
        (("--set", "train.precision=fp16", "--overwrite"), "fp16 is not supported"),
        (("--set", "train.epohcs=3"), "did you mean 'epochs'"),
    ]:
        done = train(tiny_experiment, "--set", f"run.dir={four_epochs}", "--set", "train.epochs=4", *arguments, check=False)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_tiny_table_can_be_overfitted(tiny_experiment: Path, tmp_path: Path) -> None:
    quiet = ["model.dropout=0", "encoder.lora.dropout=0", *(f"tasks.{task}.head_dropout=0" for task in range(3))]
    fast = ["optim.lr=0.004", "optim.lr_encoder=0.002", "optim.weight_decay=0", "train.epochs=60", f"run.dir={tmp_path / 'run'}"]
    train(tiny_experiment, *[word for value in (*quiet, *fast) for word in ("--set", value)])
    records = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert records[-1]["train_loss_ef"] < 0.1 * records[0]["train_loss_ef"]
    assert records[-1]["train_loss_opt"] < 0.1 * records[0]["train_loss_opt"]
    assert records[-1]["train_loss_aux"] < 0.1 * records[0]["train_loss_aux"]


def test_a_non_finite_loss_stops_before_the_update(tiny_experiment: Path, tmp_path: Path) -> None:
    arguments = ("--set", f"run.dir={tmp_path / 'run'}", "--set", "optim.lr=1e30", "--set", "optim.warmup_epochs=0", "--set", "optim.clip=1e30")
    done = train(tiny_experiment, *arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NaN or infinite" in done.stderr
    assert "table rows [" in done.stderr


def test_summary_trains_nothing(tiny_experiment: Path, tmp_path: Path) -> None:
    done = train(tiny_experiment, "--summary", "--set", f"run.dir={tmp_path / 'run'}")
    assert "string adapter polymer" in done.stdout
    assert "STAND-IN" in done.stdout
    assert not (tmp_path / "run").exists()
