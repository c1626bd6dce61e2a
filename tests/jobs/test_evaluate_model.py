"""python -m jobs.evaluate_model: what it prints, what it leaves in the run folder, and what it
refuses.
"""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from fusionnet.commands.command import run_job
from fusionnet.commands.evaluate_model import main


@pytest.fixture
def folder(made_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_run, tmp_path / "run")


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Run the job as its command line would; return exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["evaluate_model", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        run_job(main)
    printed = capsys.readouterr()
    return int(str(done.value.code)), printed.out, printed.err


def test_json_is_printed_alone_and_is_what_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "--run", folder, "--json")
    assert code == 0
    written = json.loads((folder / "metrics.json").read_text())
    assert json.loads(out) == written
    assert set(written["test"]["outcome"]) == {"mae", "rmse", "r2"}
    assert "oracle" not in written
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_other_splits_and_checkpoints_are_said_and_kept_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, capsys, "--run", folder)[0] == 0
    test_metrics = (folder / "metrics.json").read_bytes()
    code, out, _ = call(
        monkeypatch, capsys, "--run", folder, "--split", "validation", "--checkpoint", "final"
    )
    assert code == 0
    assert "validation rows" in out
    assert "checkpoint 'final'" in out
    assert (folder / "metrics.json").read_bytes() == test_metrics
    assert json.loads((folder / "metrics_validation.json").read_text())["checkpoint"] == "final"
    assert {path.name for path in folder.iterdir()} >= {
        "report.html",
        "report_validation.html",
        "plots",
        "plots_validation",
    }


def test_the_oracle_and_a_moved_cache(
    folder: Path,
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_experiment.parent / "cache.zarr", tmp_path / "moved.zarr")
    pl.read_parquet(tiny_experiment.parent / "table.parquet").select("outcome").write_csv(
        tmp_path / "oracle.csv"
    )
    code, out, _ = call(
        monkeypatch,
        capsys,
        "--run",
        folder,
        "--cache",
        tmp_path / "moved.zarr",
        "--oracle",
        tmp_path / "oracle.csv",
    )
    assert code == 0
    assert json.loads((folder / "metrics.json").read_text())["oracle"]["outcome"][
        "r2"
    ] == pytest.approx(1.0)
    assert "1.000" in next(
        line for line in out.splitlines() if line.split()[:2] == ["outcome", "r2"]
    )


def test_what_is_wrong_is_said_with_exit_code_2(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [
        (("--run", tmp_path / "none"), "is not a run folder"),
        (("--run", folder, "--cache", tmp_path / "none.zarr"), "there is no cache"),
        (
            ("--run", folder, "--checkpoint", "last", "--oracle", tmp_path / "none.parquet"),
            "there is no oracle",
        ),
        (("--run", folder, "--device", "nowhere"), "device 'nowhere'"),
    ]
    for arguments, message in cases:
        code, out, err = call(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert not (folder / "metrics.json").exists()
