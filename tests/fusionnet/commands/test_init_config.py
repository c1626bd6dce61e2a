"""`fusionnet init`: what it prints, what it writes, and what it does not overwrite."""

import json
from pathlib import Path

import polars as pl
import pytest

from fusionnet.commands import cli
from fusionnet.commands.command import run_job
from fusionnet.experiment import load_experiment


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    columns = {
        "smiles": ["*CC*", "*CCO*", "*CC(*)C", "*CN*"] * 10,
        "x": [0.5 * row for row in range(40)],
        "tg (K)": [300.0 + row % 7 for row in range(40)],
    }
    pl.DataFrame(columns).write_csv("my table.csv")
    return "my table.csv"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["fusionnet", "init", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_job(cli.fusionnet)
    return stopped.value.code


def test_it_writes_a_config_once_and_says_why(
    table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, table) == 0
    told = capsys.readouterr().out
    for words in ("all of 4 distinct values are PSMILES", "4 distinct strings in 40 rows"):
        assert words in told
    assert "embedcache build --config 'my table.yaml'" in told
    experiment = load_experiment("my table.yaml")
    assert [task.name for task in experiment.tasks] == ["tg"]
    assert experiment.tasks[0].unit == "K"
    assert experiment.run.dir == "runs/my_table"
    Path("my table.yaml").write_text("mine")
    assert run(monkeypatch, table) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("my table.yaml").read_text() == "mine"
    assert run(monkeypatch, table, "--overwrite", "--target", "x") == 0
    assert [task.column for task in load_experiment("my table.yaml").tasks] == ["x"]


def test_an_encoder_is_asked_and_the_schema_is_written_beside(
    table: str, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--encoder", str(tiny_encoder_folder), "--schema", "--out", "configs/a.yaml")
    assert run(monkeypatch, table, *flags) == 0
    first = Path("configs/a.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=fusionnet.schema.json"
    assert json.loads(Path("configs/fusionnet.schema.json").read_text())["properties"]
    assert load_experiment("configs/a.yaml").encoder.source == str(tiny_encoder_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "there is no table none.csv"),
        (["my table.csv", "--target", "tg (C)"], "did you mean 'tg (K)'"),
        (["my table.csv", "--out", "my table.csv"], "is the table itself"),
        (["my table.csv", "--target", "x", "--ignore", "x"], "named twice"),
        (["my table.csv", "--encoder", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_what_it_cannot_do_is_said(
    table: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(Path.cwd().glob("*.yaml"))
