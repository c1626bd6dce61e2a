"""A folder that is not the run's own is refused before any work, and nothing in it is touched."""

import os
import shutil
from pathlib import Path

import pytest

from embedcache.errors import RunError
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.claim import check_claim
from fusionnet.runfolder.listing import begin_listing, list_files, read_listing
from fusionnet.runfolder.lock import locked

FLAGS = {"": (False, False), "--resume": (True, False), "--overwrite": (False, True)}


@pytest.fixture
def claim(tiny_experiment: Path):
    """Check a folder as the command does; return what it says, or None."""

    def check(folder: object, flag: str = "", *settings: str) -> str | None:
        experiment = load_experiment(tiny_experiment, list(settings))
        run = experiment.run.model_copy(update={"dir": str(folder)})
        before = listed(Path(str(folder)))
        try:
            check_claim(experiment.model_copy(update={"run": run}), *FLAGS[flag])
        except RunError as error:
            return str(error)
        finally:
            assert listed(Path(str(folder))) == before
        return None

    return check


def listed(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if "\0" not in str(folder) else []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    begin_listing(folder, "tiny", "1")
    list_files(folder, "1", ["tiny_last.pt"])
    (folder / "tiny_last.pt").write_text("ours")
    return folder


@pytest.mark.parametrize("flag", FLAGS)
def test_a_new_and_an_empty_folder_are_free(claim, flag: str, tmp_path: Path) -> None:
    assert claim(tmp_path / "a" / "b", flag) is None
    assert claim(tmp_path, flag) is None
    with locked(tmp_path):  # one that was locked, and in which no run began
        pass
    assert claim(tmp_path, flag) is None
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").mkdir()
    assert claim(tmp_path / "link", flag) is None


@pytest.mark.parametrize("flag", FLAGS)
def test_a_folder_of_other_peoples_files_is_refused_whatever_is_asked(
    claim, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, "."):
        said = claim(folder, flag)
        assert "holds no run, but notes.txt" in said
        assert "--overwrite" not in said, "it does not advise what would not help"


def test_a_folder_with_a_run_is_continued_or_deleted_as_asked(claim, run: Path) -> None:
    said = claim(run)
    assert "holds an earlier run, 'tiny'" in said
    assert "--resume" in said
    assert "--overwrite" in said
    assert claim(run, "--resume") is None
    assert claim(run, "--overwrite") is None
    (run.parent / "link").symlink_to(run)
    assert claim(run.parent / "link", "--overwrite") is None


def test_another_runs_name_does_not_go_on_in_a_runs_folder(claim, run: Path) -> None:
    said = claim(run, "--resume", "run.name=other")
    assert "holds the run 'tiny', which cannot be continued as run.name 'other'" in said
    assert claim(run, "--overwrite", "run.name=other") is None


def test_a_run_is_not_deleted_among_files_that_it_did_not_write(claim, run: Path) -> None:
    for number in range(7):
        (run / f"notes{number}.txt").write_text("mine")
    said = claim(run, "--overwrite")
    assert "notes0.txt" in said
    assert "and 2 more, which no run wrote" in said
    assert claim(run, "--resume") is None


def test_a_folder_is_not_deleted_in_which_the_table_the_cache_or_an_encoder_lies(
    claim, run: Path, tiny_encoder_folder: Path
) -> None:
    for key, path in (
        ("data.path", "table.parquet"),
        ("cache.path", "cache.zarr"),
        ("encoder.source", "tiny"),
    ):
        (run / path).mkdir()
        assert f"holds {key} (" in claim(run, "--overwrite", f"{key}={run / path}")
        (run / path).rmdir()
    linked = shutil.copytree(run, run.parent / "linked")
    (linked / "encoder").mkdir()
    (run.parent / "encoder").symlink_to(linked / "encoder")
    own = f"data.strings.1.encoder={{source: {run.parent / 'encoder'}}}"
    assert "holds the encoder of 'partner'" in claim(linked, "--overwrite", own)


def test_what_cannot_be_a_folder_says_why(
    claim, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for folder, reason in (
        (tmp_path / "file", "file is a file, not a folder"),
        (tmp_path / "file" / "a" / "b", r"file, which is a file, not a folder"),
        ("a\0b", "NUL character"),
        (tmp_path / "dangling", "is a link to nowhere, which is not there"),
    ):
        for flag in FLAGS:
            assert reason in claim(folder, flag)
    forbidden = lambda path, mode: os.fspath(path) != os.fspath(run)  # noqa: E731
    monkeypatch.setattr(os, "access", forbidden)
    for folder in (run, run / "inside"):
        assert f"this user may not write in {run}" in claim(folder, "--resume")


def test_reading_an_odd_folder_is_no_traceback(claim, run: Path) -> None:
    (run / "run_files.jsonl").unlink()
    (run / "run_files.jsonl").mkdir()
    assert read_listing(run) is None
    assert "holds no run" in claim(run, "--overwrite")
