"""python -m jobs.evaluate_model: what it prints, what it leaves in the run folder, and what it
refuses.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from fusionnet.commands.evaluate_model import main
from fusionnet.runfolder.listing import foreign_files, write_listed
from fusionnet.trained.run import load_run
from fusionnet.workflow import evaluating

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(made_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_run, tmp_path / "run")


@pytest.mark.slow
def test_json_is_printed_alone_and_is_what_is_written(call: Call, folder: Path) -> None:
    code, out, _ = call(main, "--run", folder, "--json")
    assert code == 0
    written = json.loads((folder / "metrics.json").read_text())
    assert json.loads(out) == written
    assert set(written["test"]["outcome"]) == {"mae", "rmse", "r2", "spearman"}
    assert "oracle" not in written
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert foreign_files(folder) == [], "what an evaluation wrote is the run's own"


@pytest.mark.slow
def test_a_page_without_the_model_holds_no_weights(call: Call, folder: Path) -> None:
    words = ("--run", folder, "--no-baselines", "--out", folder.parent / "page")
    assert call(main, *words)[0] == 0
    page = folder.parent / "page" / "report.html"
    assert "live-weights" in page.read_text()
    size = page.stat().st_size
    assert call(main, *words, "--no-live")[0] == 0
    assert "live-weights" not in page.read_text()
    assert page.stat().st_size < size


def test_an_evaluation_writes_over_no_file_that_the_run_did_not_write(
    call: Call, folder: Path
) -> None:
    (folder / "metrics.json").write_text("mine")
    code, _, err = call(main, "--run", folder, "--no-baselines")
    assert code == 2
    assert "metrics.json, which the run did not write" in err
    assert (folder / "metrics.json").read_text() == "mine"


@pytest.mark.slow
def test_the_runs_card_has_the_test_metrics_once_they_are_known(call: Call, folder: Path) -> None:
    run = load_run(folder)
    assert call(main, "--run", folder, "--no-baselines")[0] == 0
    assert not (folder / "README.md").exists(), "the run has not exported one yet"
    write_listed(folder, run.run_id, folder / "README.md", b"as training wrote it")
    for words in (("--checkpoint", "final"), ("--out", folder / "out")):
        assert call(main, "--run", folder, "--no-baselines", *words)[0] == 0
        assert (folder / "README.md").read_text() == "as training wrote it"
    code, out, _ = call(main, "--run", folder, "--no-baselines", "--json")
    assert code == 0
    mae = json.loads(out)["test"]["outcome"]["mae"]
    assert f"| outcome | mae | {mae:.4g} | none |" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_other_splits_and_checkpoints_are_said_and_kept_apart(call: Call, folder: Path) -> None:
    assert call(main, "--run", folder)[0] == 0
    test_metrics = (folder / "metrics.json").read_bytes()
    code, out, _ = call(main, "--run", folder, "--split", "validation", "--checkpoint", "final")
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


@pytest.mark.slow
def test_a_read_only_run_is_refused_before_the_work_and_evaluated_into_another_folder(
    call: Call,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    access = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "load_run", lambda *_: pytest.fail("the work has begun"))
        for words, message in (
            ((), f"{folder} is read-only for this user; name another folder with --out DIR"),
            (("--out", folder), "read-only for this user"),
            (("--out", tmp_path / "file"), "file is no folder"),
            (("--out", tmp_path / "file" / "new"), "file is no folder"),
            (("--out", tmp_path / "taken"), "report.html is a folder, where a file is to be"),
            (("--out", tmp_path / ("n" * 300)), "File name too long"),
        ):
            code, out, err = call(main, "--run", folder, *words)
            assert (code, out) == (2, "")
            assert message in err, err
    target = tmp_path / "new" / "place"
    words = ("--out", target, "--no-baselines")
    code, out, _ = call(main, "--run", folder, *words)
    assert code == 0
    assert f"report: {target / 'report.html'}" in out
    assert {path.name for path in target.iterdir()} == {"metrics.json", "report.html", "plots"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_the_oracle_and_a_moved_cache(
    call: Call,
    folder: Path,
    tiny_experiment: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_experiment.parent / "cache.zarr", tmp_path / "moved.zarr")
    pl.read_parquet(tiny_experiment.parent / "table.parquet").select("outcome").write_csv(
        tmp_path / "oracle.csv"
    )
    code, out, _ = call(
        main,
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
    call: Call,
    folder: Path,
    tmp_path: Path,
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
        code, out, err = call(main, *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert not (folder / "metrics.json").exists()


@pytest.mark.slow
def test_two_runs_are_compared_on_the_same_rows(
    call: Call, folder: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other one", seed=8)
    words = ("--run", folder, "--against", other, "--no-baselines")
    code, out, _ = call(main, *words)
    assert code == 0
    assert f"against {other}: 140 rows of 4 patient" in out
    written = json.loads((folder / "against_other_one.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    mae = written["differences"]["outcome"]["mae"]
    assert mae["own"] == metrics["test"]["outcome"]["mae"]
    assert call(main, "--run", other, "--no-baselines")[0] == 0
    beside = json.loads((other / "metrics.json").read_text())
    assert mae["other"] == beside["test"]["outcome"]["mae"]
    assert f"<h2>Against {other}</h2>" in (folder / "report.html").read_text()
    assert foreign_files(folder) == []
    assert not list(other.glob("against*"))
    code, out, _ = call(main, *words, "--json", "--out", tmp_path / "out")
    assert (code, json.loads(out)) == (0, written)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"metrics.json", "report.html", "plots", "against_other_one.json"}


def test_what_cannot_be_compared_is_said_before_the_work(
    call: Call, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "against_run.json").mkdir(parents=True)
    for words, message in (
        (("--against", tmp_path), "is not a run folder"),
        (("--against", folder, "--out", tmp_path / "out"), "against_run.json is a folder"),
    ):
        code, out, err = call(main, "--run", folder, *words)
        assert (code, out) == (2, "")
        assert message in err
