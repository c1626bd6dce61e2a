"""python -m jobs.predict: input columns kept, predictions beside their own rows, all or nothing
written, all violations at once.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from embedcache.errors import TableError
from fusionnet import RewardModel
from fusionnet.commands.predict import main
from fusionnet.trained import batches, reward
from fusionnet.trained.folder import tables_of
from fusionnet.workflow.predicting import MARKS, write_scores

Call = Callable[..., tuple[int, str, str]]

REWARD = {
    "terms": [{"task": "ef", "weight": 0.5}, {"task": "opt", "weight": 0.3}],
    "penalties": [{"task": "aux", "above": 10.0, "penalty": 1.0}],
}


@pytest.fixture(scope="module")
def folder(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(made_run, tmp_path_factory.mktemp("runs") / "run")
    config = yaml.safe_load((copy / "tiny_config.yaml").read_text())
    (copy / "tiny_config.yaml").write_text(yaml.safe_dump({**config, "reward": REWARD}))
    return copy


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet").with_row_index("key")


@pytest.mark.parametrize("source", ["in.parquet", "in [1].csv"])
@pytest.mark.parametrize("target", ["out.parquet", "out [1].csv"])
def test_predictions_stand_beside_their_rows(
    call: Call,
    source: str,
    target: str,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 50)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    shuffled.write_parquet(tmp_path / source) if source.endswith("parquet") else shuffled.write_csv(
        tmp_path / source
    )
    code, out, err = call(
        main,
        "--run",
        folder,
        "--input",
        tmp_path / source,
        "--output",
        tmp_path / target,
        "--reward",
    )
    assert code == 0, err
    written = (
        pl.read_parquet(tmp_path / target)
        if target.endswith("parquet")
        else pl.read_csv(tmp_path / target, glob=False)
    )
    added = ["predicted_outcome", "predicted_good", "predicted_gappy", "reward"]
    added += ["reward_ef", "reward_opt", "penalty_aux"]
    assert written.columns == [*frame.columns, *added, *MARKS]
    assert written["key"].to_list() == shuffled["key"].to_list()
    wanted = RewardModel.load(folder).score(shuffled)
    np.testing.assert_allclose(
        written.select(added).to_numpy(), wanted.select(added).to_numpy(), rtol=1e-4, atol=1e-4
    )
    assert written["smiles"].to_list() == shuffled["smiles"].to_list()
    assert written["gappy"].null_count() == shuffled["gappy"].null_count()
    assert out.startswith(f"{tmp_path / target}: 420 rows")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, target])


def test_cells_of_a_csv_come_out_as_they_went_in(
    call: Call,
    folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in.csv").write_text(
        "code,smiles,other,kind,x0,x1,x2\n007,[*]CC[*],[*]CC[*],a,0.10,50.00,1e0\n1e5,*CC*,[*]CC[*],b,0.20,50,1\n"
    )
    assert (
        call(
            main,
            "--run",
            folder,
            "--input",
            tmp_path / "in.csv",
            "--output",
            tmp_path / "out.csv",
        )[0]
        == 0
    )
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[1].startswith("007,[*]CC[*],[*]CC[*],a,0.10,50.00,1e0,")
    assert lines[2].startswith("1e5,*CC*,")  # as written, though the model reads [*]CC[*]
    assert "reward" not in lines[0]


def test_new_strings_and_their_unknown_parts_are_said(
    call: Call,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
) -> None:
    frame.head(3).with_columns(smiles=pl.lit("[*]C[Pt]C[*]")).write_parquet(tmp_path / "in.parquet")
    code, out, err = call(
        main,
        "--run",
        folder,
        "--input",
        tmp_path / "in.parquet",
        "--output",
        tmp_path / "out.parquet",
    )
    assert code == 0, err
    assert "1 distinct 'polymer' strings were in no training row" in out
    assert pl.read_parquet(tmp_path / "out.parquet")["predicted_outcome"].is_finite().all()


@pytest.mark.slow
def test_wrong_input_is_refused_whole(
    call: Call,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
) -> None:
    (tmp_path / "out.parquet").write_text("an earlier output")
    # the last row alone: nothing may be written before it is seen
    last = pl.int_range(pl.len()) == 419
    bad = frame.with_columns(
        x2=pl.when(last).then(-1.0).otherwise("x2"),
        kind=pl.when(last).then(pl.lit("z")).otherwise("kind"),
    )
    cases = [
        (bad, ("log10 needs values above 0", "unknown category 'z'", "row 419")),
        (frame.drop("x0"), ("'x0' is missing",)),
        (
            frame.with_columns(x0=pl.when(last).then(1e20).otherwise("x0")),
            ("numeric column 'x0': so far from the train rows that fp32 overflows", "row 419"),
        ),
        (
            frame.with_columns(predicted_good=pl.lit(1.0)),
            ("already has the columns predicted_good",),
        ),
    ]
    for table, parts in cases:
        table.write_parquet(tmp_path / "in.parquet")
        code, _, err = call(
            main,
            "--run",
            folder,
            "--input",
            tmp_path / "in.parquet",
            "--output",
            tmp_path / "out.parquet",
        )
        assert code == 2
        assert all(part in err for part in parts), err
    (tmp_path / "in.parquet").write_bytes(b"no parquet")
    assert (
        call(
            main,
            "--run",
            folder,
            "--input",
            tmp_path / "in.parquet",
            "--output",
            tmp_path / "out.parquet",
        )[0]
        == 2
    )
    code, _, err = call(
        main,
        "--run",
        folder,
        "--input",
        tmp_path / "none.csv",
        "--output",
        tmp_path / "out.parquet",
    )
    assert (code, "there is no table" in err) == (2, True)
    assert (tmp_path / "out.parquet").read_text() == "an earlier output"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def predict_into(
    call: Call,
    target: object,
    folder: Path,
    source: Path,
) -> tuple[int, str]:
    """Return the exit code and what was said on stderr."""
    arguments = ("--run", folder, "--input", source, "--output", target)
    code, _, err = call(main, *arguments)
    return code, err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    call: Call,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "in.parquet"
    frame.write_parquet(source)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.parquet").symlink_to(source)
    (tmp_path / "closed").mkdir()
    (tmp_path / "kept.csv").write_text("kept")
    os.mkfifo(tmp_path / "pipe.csv")
    access = os.access
    closed = (tmp_path / "closed", tmp_path / "kept.csv")  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path not in closed and access(path, mode))
    monkeypatch.setattr(RewardModel, "load", lambda *_: pytest.fail("the work has begun"))
    cases = {
        "file/out.parquet": "file is no folder",
        "folder.csv": "is a folder",
        "in.parquet": "is the input itself",
        "link.parquet": "is the input itself",
        "pipe.csv": "is no regular file",
        "closed/out.csv": "closed is read-only for this user",
        "closed/new/out.csv": "closed is read-only for this user",
        "kept.csv": "is write-protected",
        f"{'n' * 300}.csv": "File name too long",
        f"{'n' * 300}/out.csv": "File name too long",
        "a\0b.csv": "null byte",
        "out.xlsx": "ends in none of .parquet, .csv, .tsv, .arrow",
    }
    (table,) = tables_of(folder)
    cases[str(table)] = "is the table that the run was trained on"
    before = set(tmp_path.rglob("*"))
    for name, message in cases.items():
        code, err = predict_into(call, tmp_path / name, folder, source)
        assert (code, message in err) == (2, True), err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["new/folder/out.parquet", f"{'n' * 251}.csv"])
def test_missing_folders_are_made_and_long_names_taken(
    call: Call,
    name: str,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
) -> None:
    frame.head(3).write_parquet(tmp_path / "in.parquet")
    source, target = tmp_path / "in.parquet", tmp_path / name
    assert predict_into(call, target, folder, source) == (0, "")
    assert [path.name for path in target.parent.iterdir() if path != source] == [target.name]


def test_what_a_csv_cannot_hold_is_said_before_the_work(
    call: Call,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "in.parquet"
    frame.head(3).with_columns(
        tags=pl.lit(["a", "b"]),
        both=pl.struct("x0", "x1"),
        raw=pl.lit(b"x"),
        took=pl.duration(seconds=1),
        pair=pl.lit([1.0, 2.0]).cast(pl.Array(pl.Float64, 2)),
        day=pl.date(2020, 1, 2),
        level=pl.lit("b").cast(pl.Enum(["b"])),
    ).write_parquet(source)
    with monkeypatch.context() as patch:
        patch.setattr(reward, "predicted_batches", lambda *_: pytest.fail("the work has begun"))
        code, err = predict_into(call, tmp_path / "out.csv", folder, source)
    assert code == 2
    assert all(f"{name} (" in err for name in ("tags", "both", "raw", "took", "pair"))
    assert not any(f"{name} (" in err for name in ("day", "level", "x0", "key"))
    assert "--output NAME.parquet" in err
    assert list(tmp_path.iterdir()) == [source]
    code, err = predict_into(call, tmp_path / "out.parquet", folder, source)
    assert (code, err) == (0, "")
    assert (
        pl.read_parquet(tmp_path / "out.parquet")
        .select("tags", "pair", "level")
        .equals(pl.read_parquet(source).select("tags", "pair", "level"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_nothing_is_published_when_a_later_batch_fails(
    call: Call,
    name: str,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / name
    frame.write_parquet(source)
    target.write_text("an earlier output")
    others = [tmp_path / f"{name}{suffix}" / "somebody's" for suffix in (".parts", ".partial")]
    for other in others:
        other.parent.mkdir()
        other.touch()
    real = RewardModel.batches

    def fail_late(*arguments: Any, **options: Any) -> Iterator[pl.DataFrame]:
        yield from islice(real(*arguments, **options), 5)
        raise TableError("the table changed")

    monkeypatch.setattr(batches, "BATCH_ROWS", 50)
    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "batches", fail_late)
        code, err = predict_into(call, target, folder, source)
    assert (code, err) == (2, "error: the table changed\n")
    assert target.read_text() == "an earlier output"
    left = {source, target, *(other.parent for other in others)}
    assert set(tmp_path.iterdir()) == left
    assert predict_into(call, target, folder, source) == (0, "")
    assert set(tmp_path.iterdir()) == left
    assert all(other.is_file() for other in others)


def test_means_are_those_of_all_rows(
    call: Call,
    folder: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 50)  # the last batch has 20 rows
    frame.write_parquet(tmp_path / "in.parquet")
    model, target = RewardModel.load(folder), tmp_path / "out.parquet"
    added = model.columns(reward=True)
    found = write_scores(model, tmp_path / "in.parquet", target, reward=True)
    wanted = pl.read_parquet(target).select(pl.col(added).cast(pl.Float64).mean()).row(0)
    assert found.num_rows == 420
    np.testing.assert_allclose(list(found.means.values()), wanted, rtol=1e-12)


def test_broken_rows_are_predicted_as_null_where_that_is_asked_for(
    call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    smiles = frame["smiles"].to_list()
    smiles[3:5] = ["CCO", "[*]CCCC[*]"]
    x0 = [1e6, *frame["x0"].to_list()[1:]]
    frame.with_columns(pl.Series("smiles", smiles), pl.Series("x0", x0)).write_csv(source)
    words = ["--run", str(folder), "--input", str(source), "--output", str(target)]
    code, _, err = call(main, *words)
    assert code == 2
    assert "'CCO' is not a psmiles" in err
    assert not target.exists()
    code, out, err = call(main, *words, "--on-invalid", "skip")
    assert (code, err) == (0, "")
    assert "1 row of 420 break a rule of the config and are predicted as null" in out
    assert "1 row of 420 have a string or a category that training never saw" in out
    written = pl.read_csv(target)
    assert written["predicted_outcome"].null_count() == 1
    assert written["predicted_outcome"][3] is None
    assert written["known"].to_list()[3:6] == [None, False, True]
    assert written["outside"][0]
    assert written["key"].to_list() == frame["key"].to_list()


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_an_empty_input_is_an_empty_output(
    name: str, call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / name, tmp_path / "out.parquet"
    empty = frame.head(0)
    empty.write_csv(source) if name.endswith("csv") else empty.write_parquet(source)
    assert predict_into(call, target, folder, source) == (0, "")
    added = ["predicted_outcome", "predicted_good", "predicted_gappy"]
    written = pl.read_parquet(target)
    assert (written.height, written.columns) == (0, [*frame.columns, *added, *MARKS])


def test_a_text_files_columns_have_the_types_of_their_cells_in_parquet(
    call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.parquet"
    more = frame.with_columns(code=pl.lit("007"), empty=pl.lit(None), big=pl.lit("9" * 19))
    more.write_csv(source, separator=";")
    assert predict_into(call, target, folder, source) == (0, "")
    found = pl.read_parquet(target)
    names = ("key", "real", "x0", "smiles", "code", "big")
    types = {name: str(found.schema[name]) for name in names}
    assert types == {
        "key": "Int64",
        "real": "Boolean",
        "x0": "Float64",
        "smiles": "String",
        "code": "String",
        "big": "String",
    }


@pytest.mark.parametrize("suffix", [".tsv", ".arrow", ".feather", ".ipc"])
def test_other_formats_come_out_as_they_go_in(
    suffix: str, call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix.upper()}"
    rows = frame.head(5).select("key", "smiles", "other", "kind", "x0", "x1", "x2")
    if suffix == ".tsv":
        rows.write_csv(source, separator="\t")
    else:
        rows.write_ipc(source)
    assert predict_into(call, target, folder, source) == (0, "")
    read = partial(pl.read_csv, separator="\t") if suffix == ".tsv" else pl.read_ipc
    found = read(target).cast({"key": pl.UInt32})
    assert found.select(rows.columns).equals(rows)
    wanted = RewardModel.load(folder).predict(rows)["predicted_outcome"]
    np.testing.assert_allclose(found["predicted_outcome"], wanted, rtol=1e-5)


def test_what_training_never_saw_is_refused_or_told_on_request(
    call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    here = pl.int_range(pl.len()) == 2
    new = pl.when(here).then(pl.lit("[*]CCCCCC[*]")).otherwise("smiles").alias("smiles")
    frame.head(4).with_columns(new).write_parquet(source)
    words = ["--run", folder, "--input", source, "--output", target, "--reward", "--unseen"]
    code, _, err = call(main, *words, "refuse")
    assert code == 2
    assert "'[*]CCCCCC[*]' is none of the strings that the run was trained on" in err
    assert "row 2" in err
    assert not target.exists()
    assert call(main, *words, "refuse", "--on-invalid", "skip")[0] == 0
    assert pl.read_parquet(target)["reward"].is_null().to_list() == [False, False, True, False]
    assert call(main, *words, "flag")[0] == 0
    written = pl.read_parquet(target)
    assert written["reward"].is_finite().all()
    assert written["known"].to_list() == [True, True, False, True]


def test_pessimism_needs_an_ensemble_and_a_reward(
    call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    frame.head(4).write_parquet(source)
    words = ["--run", folder, "--input", source, "--output", target]
    code, _, err = call(main, *words, "--reward", "--pessimism", "1")
    assert (code, "train an ensemble (model.members: 8)" in err) == (2, True)
    for flag, value in (("--pessimism", "1"), ("--unseen", "flag")):
        code, _, err = call(main, *words, flag, value)
        assert (code, f"{flag} is of rewards: add --reward" in err) == (2, True)
    assert not target.exists()


def test_records_with_other_cells_are_null_beside_their_own_rows(
    call: Call, folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    # blank lines are no rows, and a cell too many moves no other row's prediction
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    head, *lines = frame.head(6).write_csv().splitlines()
    lines[2] = lines[2].replace(",", ",,", 1)
    lines[4] = lines[4].rsplit(",", 1)[0]
    source.write_text("\n".join([head, lines[0], "", *lines[1:], "", ""]))
    words = ["--run", str(folder), "--input", str(source), "--output", str(target)]
    code, _, err = call(main, *words)
    assert code == 2
    assert "another number of cells than the header's 12 " in err
    assert "2 rows, e.g. 11, 13; rows 2, 4" in err
    assert call(main, *words, "--on-invalid", "skip")[0] == 0
    written = pl.read_csv(target)
    assert [row for row, known in enumerate(written["known"]) if known is None] == [2, 4]
    sound = [0, 1, 3, 5]
    assert written["key"].gather(sound).to_list() == sound
    wanted = RewardModel.load(folder).predict(frame.head(6))["predicted_outcome"]
    np.testing.assert_allclose(
        written["predicted_outcome"].gather(sound), wanted.gather(sound), rtol=1e-4
    )
