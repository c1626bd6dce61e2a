"""The console scripts find their commands, say what there is, and refuse what there is not."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fusionnet.commands import cli
from fusionnet.commands.command import run_job
from fusionnet.commands.examples import examples_folder

PROGRAMS = {"embedcache": cli.embedcache, "fusionnet": cli.fusionnet}


def run(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: str) -> int | str | None:
    """Return the exit code of a console script in this process."""
    monkeypatch.setattr("sys.argv", [f"/usr/bin/{program}", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_job(PROGRAMS[program])
    return stopped.value.code


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_command_it_lists_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    assert run(monkeypatch, program) == 0
    listed = capsys.readouterr().out
    commands = cli.EMBEDCACHE if program == "embedcache" else cli.FUSIONNET
    assert all(name in listed for name in commands)
    assert run(monkeypatch, program, "nope") == 2
    assert f"{program}: there is no command nope" in capsys.readouterr().err
    assert run(monkeypatch, program, "--version") == 0
    assert capsys.readouterr().out.startswith(f"{program} ")


@pytest.mark.parametrize(
    ("program", "name"),
    [("embedcache", name) for name in cli.EMBEDCACHE]
    + [("fusionnet", name) for name in cli.FUSIONNET],
)
def test_every_command_answers_help_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, name: str
) -> None:
    assert run(monkeypatch, program, name, "--help") == 0
    assert f"usage: {program} {name}" in capsys.readouterr().out


def test_examples_are_copied_and_nothing_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    assert run(monkeypatch, "fusionnet", "examples", "--out", str(out)) == 0
    source = examples_folder()
    for file in ("stage1.yaml", "launch/slurm.sh"):
        assert (out / file).read_bytes() == (source / file).read_bytes()
    (out / "stage1.yaml").write_text("mine")
    capsys.readouterr()
    assert run(monkeypatch, "fusionnet", "examples", "--out", str(out)) == 2
    assert "exist already" in capsys.readouterr().err
    assert (out / "stage1.yaml").read_text() == "mine"


@pytest.mark.slow
def test_the_wheel_holds_all_that_runs_and_nothing_that_collides(
    repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("setuptools", minversion="77")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path / "wheel")]
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (repository / name).is_file() and not name.startswith(("benchmarks/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    names = set(zipfile.ZipFile(next((tmp_path / "wheel").glob("*.whl"))).namelist())
    kept = ("embedcache/", "fusionnet/")
    wanted = {name for name in listed if name.startswith(kept) and not name.endswith(".md")}
    wanted |= {f"fusionnet/{name}" for name in listed if name.startswith("configs/")}
    assert wanted <= names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"embedcache", "fusionnet"}
