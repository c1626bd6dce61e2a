"""python -m jobs.design: what is written is what the model says, and what cannot be is said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from fusionnet import RewardModel
from fusionnet.commands.design import main
from fusionnet.workflow.designing import FILES

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--candidates", 4_000)


@pytest.fixture(scope="module")
def model(designable: Path) -> RewardModel:
    return RewardModel.load(designable)


def edited(designable: Path, folder: Path, **sections: object) -> Path:
    """Return a copy of the run whose YAML file says something else."""
    copy = shutil.copytree(designable, folder)
    config = copy / "tiny_config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **sections}))
    return copy


def test_a_patients_designs_are_found_told_and_drawn(
    call: Call, designable: Path, model: RewardModel, tmp_path: Path
) -> None:
    words = ("--run", designable, "--patient", "P04", *SMALL, "--out", tmp_path)
    code, out, err = call(main, *words, "--pareto", "ef,-aux", "--precision", "fp32")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    text = (tmp_path / "design.md").read_text()
    assert text in out
    for told in ("too good to be true", "Bounds are those of the table", "no intervals", "P04"):
        assert told in text
    assert (tmp_path / "design.png").read_bytes().startswith(b"\x89PNG")

    top, front = (pl.read_csv(tmp_path / f"{name}.csv") for name in ("top", "front"))
    assert top["place"].to_list() == list(range(1, 11))
    assert (top["reward"].diff().drop_nulls() <= 0).all()
    assert set(top["patient"]) == {"P04"}
    parts = top["reward_ef"] + top["reward_opt"] - top["penalty_aux"]
    np.testing.assert_allclose(parts, top["reward"], rtol=1e-4, atol=1e-4)
    assert {"predicted_outcome", "known", "outside", "reason"} <= set(top.columns)
    for table in (top, front):  # each can be predicted as it is
        again = model.score(table.select(pl.exclude("reward", "known", "outside", "reason")))
        np.testing.assert_allclose(again["reward"], table["reward"], rtol=1e-4, atol=1e-4)
    better = front.sort("predicted_outcome", descending=True)["predicted_gappy"]
    assert (better.diff().drop_nulls() <= 1e-6).all()  # more of one costs of the other


def test_weights_change_what_is_best(call: Call, designable: Path, tmp_path: Path) -> None:
    words = ("--run", designable, "--patient", "P04", *SMALL, "--top", 3, "--out")
    code, _, err = call(main, *words, tmp_path / "a")
    assert code == 0, err
    code, out, err = call(main, *words, tmp_path / "b", "--weights", "ef=-1,opt=0")
    assert code == 0, err
    assert "Reward: -1 x ef + 0 x opt - 0.2 where aux is above 10." in out
    found = [pl.read_csv(tmp_path / name / "top.csv") for name in "ab"]
    assert found[0]["predicted_outcome"].mean() > found[1]["predicted_outcome"].mean() + 0.1
    assert found[1].height == 3


def test_a_new_patient_comes_from_a_file(call: Call, designable: Path, tmp_path: Path) -> None:
    new = pl.DataFrame({"patient": ["N1", "N2"], "x0": [0.1, 0.2], "age": [None, 1.0]})
    new.with_columns(sex=pl.lit("f")).write_csv(tmp_path / "new.csv")
    words = ("--run", designable, "--out", tmp_path / "out")
    code, out, err = call(
        main, *words, "--patients", tmp_path / "new.csv", "--patient", "N2", "--grid", 3
    )
    assert code == 0, err
    assert "all combinations of 3 levels" in out
    assert set(pl.read_csv(tmp_path / "out" / "top.csv")["x0"]) == {0.2}


WRONG = {
    "a patient that nobody knows": (("--patient", "P99"), r"no patient 'P99'; did you mean"),
    "no candidates": (("--candidates", 0), r"--candidates must be a number from 1 on"),
    "fewer candidates than cells": (("--candidates", 5), r"--candidates must be from"),
    "no top": (("--top", -3), r"--top must be a number from 1 on; got -3"),
    "a distance that is none": (("--distance", "nan"), r"--distance must be a number from 0"),
    "a seed below 0": (("--seed", -1), r"--seed must be a number from 0 on"),
    "a weight of no term": (("--weights", "aux=1"), r"no term of the reward reads"),
    "a front of no task": (("--pareto", "ef,nothing"), r"'nothing' is no trained task"),
    "pessimism of one network": (("--pessimism", 1), r"is one network"),
    "no table": (("--table", "gone.parquet"), r"gone.parquet.*--table"),
    "no run": (("--run", "gone"), r"gone"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused(
    case: str,
    call: Call,
    designable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = WRONG[case]
    code, _, err = call(main, "--run", designable, "--patient", "P04", *words)
    assert code == 2, err
    assert pl.Series([err]).str.contains(message).item(), err
    assert not list(tmp_path.iterdir())


def test_broken_rows_empty_tables_and_runs_without_reward_are_refused(
    call: Call, designable: Path, model: RewardModel, tmp_path: Path
) -> None:
    table = pl.read_parquet(model.run.data.files[0])
    given = {
        "NaN": (table.with_columns(x1=float("nan")), "null or NaN"),
        "empty": (table.head(0), "no rows"),
    }
    words = ("--patient", "P04", "--out", tmp_path / "out")
    for name, (frame, message) in given.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
        code, _, err = call(
            main, "--run", designable, *words, "--table", tmp_path / f"{name}.parquet"
        )
        assert code == 2
        assert message in err
    for folder, sections, message in (
        ("plain", {"reward": {"terms": [], "penalties": []}}, "has no reward.terms"),
        ("typo", {"design": {"variables": ["x9"]}}, "design.variables names 'x9'"),
        ("held", {"design": {"bounds": {"x1": [-10, 10]}}}, "the table's values"),
    ):
        run = edited(designable, tmp_path / folder, **sections)
        code, _, err = call(main, "--run", run, *words)
        assert code == 2
        assert message in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_search(
    call: Call, designable: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "top.csv").mkdir(parents=True)
    for out, message in (("file", "is no folder"), ("taken", "top.csv is a folder")):
        words = ("--run", designable, "--patient", "P04", "--out", tmp_path / out)
        code, _, err = call(main, *words)
        assert code == 2
        assert message in err


def test_files_that_no_search_wrote_are_kept(call: Call, designable: Path, tmp_path: Path) -> None:
    words = ("--run", designable, "--patient", "P04", *SMALL, "--out", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top.csv").write_text("mine")
    code, _, err = call(main, *words)
    assert code == 2
    assert "out has top.csv, which no search for designs wrote; name another" in err
    assert (tmp_path / "out" / "top.csv").read_text() == "mine"
    (tmp_path / "out" / "top.csv").unlink()
    assert call(main, *words)[0] == 0
    assert call(main, *words)[0] == 0  # its own files are replaced
    code, _, err = call(main, *words, "--patients", tmp_path / "out" / "top.csv")
    assert code == 2
    assert "top.csv is the input itself" in err
