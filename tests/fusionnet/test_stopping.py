"""Commands stop when they are told to: with a word and their exit code, at a second signal at once,
and with their launcher.

The processes here are plain interpreters that import no torch.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import REPOSITORY, search_path

from fusionnet.launchers import launchers_above, program

pytestmark = pytest.mark.slow
LAUNCH = "deepspeed.launcher.launch"
# what a rank runs: a command that works until it is told to stop
WORK = """
import contextlib, hashlib, sys, time
from fusionnet import stopping
from fusionnet.commands.command import run_job
stopping.LOOK_S = 0.2
how = sys.argv[1]
def main():
    with contextlib.nullcontext() if how == "waits" else stopping.at_checkpoints():
        print("works", flush=True)
        if how == "in C":  # where no handler of Python's is called
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
        while not stopping.is_asked() or how == "for long":
            time.sleep(0.01)
        time.sleep(0.1)
        raise stopping.stopped("step 7 is saved")
run_job(main)
"""
# what stands for a launcher or a shell: it starts the rest of its words and waits, or leaves
START = """
import subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[2:]])
sys.exit(child.wait() if sys.argv[1] == "waits" else 0)
"""


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start an interpreter and wait until its work has begun."""
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": search_path(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and the errors of a process, once all that hold its streams are gone."""
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_stops_with_a_word_and_its_code(number: signal.Signals) -> None:
    process = start("-c", WORK, "waits")
    process.send_signal(number)
    code, said = ended(process)
    assert code == 128 + number
    assert said.startswith(f"stopped by {number.name}; run the same command again")
    assert said.count("\n") == 1


def test_a_training_goes_on_to_its_checkpoint() -> None:
    process = start("-c", WORK, "step")
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 143
    assert said.splitlines() == [
        "SIGTERM: it stops after this optimizer step or batch, at a second signal at once",
        "stopped by SIGTERM; step 7 is saved",
    ]


@pytest.mark.parametrize("how", ["for long", "in C"])
def test_a_second_signal_ends_it_there_and_then(how: str) -> None:
    process = start("-c", WORK, how)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130
    assert "stopped" not in said


def test_what_a_launcher_passes_on_is_no_second_signal() -> None:
    process = start("-c", WORK, "step", RANK="0")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert (code, said.splitlines()[-1]) in [
        (128 + number, f"stopped by {number.name}; step 7 is saved")
        for number in (signal.SIGINT, signal.SIGTERM)
    ]


def test_the_first_rank_alone_speaks() -> None:
    process = start("-c", WORK, "step", RANK="1")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "")


def test_a_signal_that_the_process_is_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a child inherits
    try:
        process = start("-c", WORK, "step")
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_ranks_end_with_their_launcher_but_not_with_the_shell_that_started_it(
    tmp_path: Path,
) -> None:
    for name in ("shell", "deepspeed", "torchrun"):
        (tmp_path / name).write_text(START)
    words = [str(tmp_path / "deepspeed"), "waits", str(tmp_path / "torchrun"), "waits"]
    shell = start(str(tmp_path / "shell"), "leaves", *words, "-c", WORK, "step", RANK="0")
    assert shell.wait(10) == 0  # it has logged out
    time.sleep(0.5)
    runner = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(tmp_path / "deepspeed") in command_line(entry)[:2]
    )
    os.kill(runner, signal.SIGKILL)
    gone = f"the end of its launcher (deepspeed, process {runner})"
    assert ended(shell)[1].splitlines()[-1] == f"stopped by {gone}; step 7 is saved"


def command_line(process: Path) -> list[str]:
    """Return the words of a process, none of one that has just ended."""
    try:
        return (process / "cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_without_announced_ranks_nobody_is_watched() -> None:
    assert launchers_above({}) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/env/bin/python3.11 -u -m deepspeed.launcher.launch --world_info=e30= a.py", LAUNCH),
        ("/env/bin/python3.11 /env/bin/deepspeed --num_accelerators 2 jobs/train.py", "deepspeed"),
        ("python -W ignore -X dev -m torch.distributed.run train.py", "torch.distributed.run"),
        ("slurmstepd: [4711.0]", "slurmstepd:"),
        ("-bash", "-bash"),
        ("python -m pytest tests/torchrun", "pytest"),
        ("vim torchrun", "vim"),
        ("python -c import_torchrun", "import_torchrun"),
        ("python", "python"),
        ("", ""),
    ],
)
def test_a_launcher_is_known_by_what_it_runs(line: str, name: str) -> None:
    assert program(line.split()) == name
