"""python -m jobs.explain: what it prints and leaves in a folder, what a report shows of it, and
what it refuses.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionnet.commands.evaluate_model import main as evaluate
from fusionnet.commands.explain import main
from fusionnet.explain.page import section_beside
from fusionnet.explain.saved import Explained, explain_files, read_explained
from fusionnet.runfolder.listing import foreign_files
from fusionnet.trained.run import load_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(made_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_run, tmp_path / "run")


@pytest.mark.slow
def test_what_is_written_is_the_runs_own_and_in_the_report(call: Call, folder: Path) -> None:
    code, out, _ = call(main, "--run", folder, "--strings", 2, "--repeats", 2)
    assert code == 0
    for named in ("x0", "smiles", "all columns", "no causal effect", "masked", "explain.html"):
        assert named in out
    found = read_explained(folder / "importance.json")
    assert found is not None
    pictures = {path.name for path in (folder / "explain").iterdir()}
    assert pictures == {*(f"atoms_{k}.svg" for k in (1, 2, 3, 4)), *found.figures.values()}
    assert foreign_files(folder) == []
    assert (folder / "explain.html").read_text().count("data:image/svg+xml") == 4
    assert call(evaluate, "--run", folder, "--no-baselines")[0] == 0
    assert "What the model reads" in (folder / "report.html").read_text()
    validation = call(evaluate, "--run", folder, "--no-baselines", "--split", "validation")
    assert validation[0] == 0
    assert "What the model reads" not in (folder / "report_validation.html").read_text()
    assert call(main, "--run", folder, "--strings", 1, "--repeats", 1)[0] == 0
    pictures = {path.name for path in (folder / "explain").iterdir()}
    assert pictures == {"atoms_1.svg", "atoms_2.svg", *found.figures.values()}


@pytest.mark.slow
def test_a_picture_that_the_run_did_not_write_is_left_alone(call: Call, folder: Path) -> None:
    (folder / "explain").mkdir()
    mine = folder / "explain" / "atoms_1.svg"
    mine.write_text("<svg>mine</svg>")
    code, _, err = call(main, "--run", folder, "--strings", 1, "--repeats", 1)
    assert code == 2
    assert "atoms_1.svg, which the run did not write" in err
    assert mine.read_text() == "<svg>mine</svg>"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strings", "-1"), "expected a whole number"),
        (("--repeats", "0"), "1 or more"),
        (("--rows", "many"), "expected a whole number"),
        (("--split", "tests"), "invalid choice"),
        (("--checkpoint", "worst"), "invalid choice"),
        (("--out", "importance.json"), "is no folder"),
        (("--table", "nowhere.csv"), "nowhere.csv"),
        (("--cache", "nowhere.zarr"), "nowhere.zarr"),
    ],
)
def test_wrong_words_are_refused(
    call: Call, folder: Path, words: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "importance.json").write_text("mine")
    code, _, err = call(main, "--run", folder, *words)
    assert code == 2
    assert message in err


def test_a_folder_that_is_no_run_is_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = call(main, "--run", tmp_path)
    assert code == 2
    assert "is not a run folder" in err


def explained(run_id: str, epoch: int, column: str = "outcome", text: str = "CC") -> Explained:
    """What might have been found of a run, with names of one's choice."""
    increase = {"mean": 1.25, "spread": 0.1, "standard_error": 0.2}
    attribution = {
        "of": "the number", "unit": "<i>", "prediction": 1.0, "masked": 0.5, "gap": 0.2,
        "num_points": 16, "is_complete": False, "tokens": [0.25, 0.25], "atoms": None, "rest": {},
    }  # fmt: skip
    string = {
        "column": column, "text": text, "num_rows": 3, "tokens": ["<b>", "C"],
        "attributions": {column: attribution}, "picture": None, "remark": text,
    }  # fmt: skip
    importance = {
        "name": column, "kind": "number", "columns": [column], "increases": {column: increase}
    }  # fmt: skip
    return Explained.model_validate({
        "run_id": run_id, "checkpoint": "best", "epoch": epoch, "split": "test", "rows": text,
        "num_rows": 10, "num_sampled": 5, "repeats": 5, "shown": [column], "counted_by": column,
        "errors": {column: {"name": "MAE", "unit": text, "value": 2.0}},
        "importances": [importance], "figures": {column: "../../secret.png"},
        "strings": [string], "not_attributed": {column: text},
    })  # fmt: skip


def test_a_report_shows_what_is_of_this_run_epoch_and_split_alone(folder: Path) -> None:
    run = load_run(folder)
    file = explain_files(folder, "test").numbers
    assert section_beside(run, folder, "test") == ""
    for run_id, epoch, is_shown in (
        (run.run_id, run.epoch, True),
        ("another", run.epoch, False),
        (run.run_id, run.epoch + 1, False),
    ):
        file.write_text(explained(run_id, epoch).model_dump_json())
        assert ("1.250" in section_beside(run, folder, "test")) == is_shown
        assert section_beside(run, folder, "validation") == ""
    for damaged in ("", "{", "[]", '{"run_id": 1}', json.dumps({"strings": []})):
        file.write_text(damaged)
        assert section_beside(run, folder, "test") == ""


def test_every_name_and_string_in_a_section_is_escaped_and_no_file_elsewhere_is_shown(
    folder: Path,
) -> None:
    hostile = "<script>alert('x')</script>\"\x01"
    run = load_run(folder)
    (folder.parent / "secret.png").write_bytes(b"secret")
    explain_files(folder, "test").pictures.mkdir()  # without it ../../ leads nowhere
    found = explained(run.run_id, run.epoch, hostile, hostile)
    explain_files(folder, "test").numbers.write_text(found.model_dump_json())
    section = section_beside(run, folder, "test")
    assert "<script" not in section
    assert "&lt;script&gt;" in section
    assert "<b>" not in section
    assert "<i>" not in section
    assert "\x01" not in section
    assert "c2VjcmV0" not in section, "base64 of another folder's file"
    assert "NOT TO BE TRUSTED" in section
