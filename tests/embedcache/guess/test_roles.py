"""What columns are taken for, by tables that are made here."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.errors import ConfigError, SplitError, TableError
from embedcache.guess.entries import Role
from embedcache.guess.roles import Named
from embedcache.guess.whole import TableGuess, guess_table

POLYMERS = ["*CC*", "*CCO*", "*CC(*)C", "[*]CC([*])c1ccccc1"]
CHEMISTRY = {"features": ["rdkit", "morgan"]}
SALTS = ["[Li+].[Cl-]", "CC(=O)O", "c1ccccc1"]
NUM = 120
NAMED_Y = Named(targets=("y",))


def guessed(folder: Path, named: Named | None = None, **columns: Any) -> TableGuess:
    """Return the guess on a CSV of some columns, beside a PSMILES column and a target."""
    rng = np.random.default_rng(0)
    frame = {
        "smiles": [POLYMERS[row % 4] for row in range(NUM)],
        **columns,
        "y": rng.normal(size=NUM).round(3),
    }
    pl.DataFrame(frame).write_csv(folder / "table.csv")
    return guess_table(folder / "table.csv", named or NAMED_Y)


def role_and_entry(guess: TableGuess, column: str) -> tuple[Role, dict[str, Any]]:
    found = next(each for each in guess.columns if each.column == column)
    assert found.reason
    return found.role, found.entry


def numbers(low: float = 0.0, high: float = 1.0) -> list[float]:
    return np.random.default_rng(1).uniform(low, high, NUM).round(6).tolist()


@pytest.mark.parametrize(
    ("name", "values", "role", "entry"),
    [
        ("x", numbers(), Role.NUMERIC, {}),
        ("pressure (bar)", numbers(1, 9), Role.NUMERIC, {"unit": "bar"}),
        ("tg_K", numbers(200, 500), Role.NUMERIC, {"unit": "K"}),
        ("mw", [10.0 ** (row % 7) for row in range(NUM)], Role.NUMERIC, {"transform": "log10"}),
        ("x", numbers(1e-4, 1.0), Role.NUMERIC, {}),  # evenly spread, whatever the least one is
        ("x", [None, *numbers()[1:]], Role.NUMERIC, {"if_null": "indicator"}),
        ("dried", [row % 3 == 0 for row in range(NUM)], Role.CATEGORY, {}),
        ("solvent", ["water", "THF", "DMF"] * 40, Role.CATEGORY, {}),
        ("solvent", ["water", None, "DMF"] * 40, Role.CATEGORY, {"if_null": "missing"}),
        (
            "solvent",
            ["water", "DMF"] * 58 + ["a", "b", "c", "d"],
            Role.CATEGORY,
            {"other": "other", "min_rows": 3},
        ),
        ("process code", [row % 4 for row in range(NUM)], Role.CATEGORY, {}),
        ("zip", [f"0{row % 5}117" for row in range(NUM)], Role.CATEGORY, {}),
        ("Unnamed: 0", list(range(NUM)), Role.IGNORED, {}),
        ("sample_id", [7 * row for row in range(NUM)], Role.IGNORED, {}),
        ("label", [f"mix-{7 * row}-x" for row in range(NUM)], Role.IGNORED, {}),
        ("lab", ["Bonn"] * NUM, Role.IGNORED, {}),
        ("empty", [None] * NUM, Role.IGNORED, {}),
        ("measured", [f"2024-03-{1 + row % 28:02d}" for row in range(NUM)], Role.IGNORED, {}),
        ("patient", [f"P{row // 6:02d}" for row in range(NUM)], Role.GROUP, {}),
        ("paperDOI", [f"10.1/{row // 6}" for row in range(NUM)], Role.GROUP, {}),
        ("batch", [row // 6 for row in range(NUM)], Role.GROUP, {}),
        ("tube", [f"T{row // 6}" for row in range(NUM)], Role.GROUP, {}),
        ("salt", SALTS * 40, Role.STRING, {"kind": "smiles", **CHEMISTRY}),
        ("additive", ["PEO", "POSS", "CO", "NO"] * 30, Role.CATEGORY, {}),
        (
            "comonomer",
            ["*CC*", None, "*CCO*"] * 40,
            Role.STRING,
            {"name": "comonomer", "if_null": "", **CHEMISTRY},
        ),
        (
            "unit",
            ["[Cu]CC[Au]", "[Cu]CCO[Au]"] * 60,
            Role.STRING,
            {"name": "unit", "replace": {"[Cu]": "[*]", "[Au]": "[*]"}, **CHEMISTRY},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_column_has_the_role_that_it_looks_like(
    tmp_path: Path, name: str, values: list[Any], role: Role, entry: dict[str, Any]
) -> None:
    found, its = role_and_entry(guessed(tmp_path, **{name: values}), name)
    assert found is role
    named = {"column": name, **({"name": its.get("name")} if role is Role.STRING else {})}
    assert its == ({} if role in (Role.IGNORED, Role.GROUP) else {**named, **entry})


def test_free_text_is_not_used_unless_it_is_named(tmp_path: Path) -> None:
    notes = [f"stirred for {row % 40} hours, then dried in vacuum" for row in range(NUM)]
    assert role_and_entry(guessed(tmp_path, note=notes), "note")[0] is Role.IGNORED
    named = Named(strings=("note",), targets=("y",))
    guess = guessed(tmp_path, named, note=notes)
    wanted = (Role.STRING, {"name": "note", "column": "note", "kind": "text"})
    assert role_and_entry(guess, "note") == wanted
    assert role_and_entry(guess, "smiles")[0] is Role.IGNORED  # strings were named


@pytest.mark.parametrize(
    ("columns", "target", "kind"),
    [
        ({"a": numbers(), "temperature": numbers(20, 90)}, "a", None),
        ({"outcome": numbers(), "a": numbers()}, "outcome", None),
        ({"a": numbers(), "good": [row % 2 for row in range(NUM)]}, "a", None),
        ({"good": [row % 3 == 0 for row in range(NUM)]}, "good", "binary"),
        ({"soluble": ["yes", "no", "no"] * 40}, "soluble", "binary"),
        ({"phase": ["glass", "melt", "rubber"] * 40}, "phase", "multiclass"),
        ({"a": numbers(), "sign": [-1, 1] * 60}, "a", None),
        ({"a": numbers(), "rate": [10.0 ** -(row % 9) for row in range(NUM)]}, "rate", None),
    ],
    ids=[
        "not a condition",
        "by its name",
        "numbers first",
        "truths",
        "yes and no",
        "classes",
        "-1 and 1",
        "decades",
    ],
)
def test_a_target_that_is_not_named_is_guessed_and_said(
    tmp_path: Path, columns: dict[str, Any], target: str, kind: str | None
) -> None:
    pl.DataFrame({"smiles": POLYMERS * 30, **columns}).write_parquet(tmp_path / "t.parquet")
    guess = guess_table(tmp_path / "t.parquet")
    (found,) = guess.of(Role.TARGET)
    assert found.column == target
    assert "guess" in found.reason or "by its name" in found.reason
    assert found.entry.get("kind") == kind
    assert found.entry.get("transform") == ("log10" if target == "rate" else None)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["yes", "no"], ["no", "yes"]),
        (["inactive", "active"], ["inactive", "active"]),
        (["A", "B"], ["A", "B"]),
        ([-1, 1], ["-1", "1"]),
    ],
)
def test_of_two_labels_the_positive_one_is_second(
    tmp_path: Path, values: list[Any], classes: list[str]
) -> None:
    guess = guessed(tmp_path, Named(targets=("label",)), label=values * (NUM // 2))
    wanted = {"name": "label", "column": "label", "kind": "binary", "classes": classes}
    assert role_and_entry(guess, "label")[1] == wanted


def test_cells_that_stand_for_nothing_are_found_and_are_missing(tmp_path: Path) -> None:
    x: list[Any] = ["NA", "n.d.", *map(str, numbers()[2:])]
    guess = guessed(tmp_path, x=x, z=[-999, -999, *range(2, NUM)], s=["N/A", "a", "b"] * 40)
    assert sorted(guess.null_values) == ["-999", "N/A", "NA", "n.d."]
    assert role_and_entry(guess, "x")[1] == {"column": "x", "if_null": "indicator"}
    assert role_and_entry(guess, "z")[1] == {"column": "z", "if_null": "indicator"}
    assert role_and_entry(guess, "s")[1] == {"column": "s", "if_null": "missing"}


def test_decimal_commas_and_windows_text_are_found(tmp_path: Path) -> None:
    rows = [f"{POLYMERS[row % 4]};{row},5;Lösung {row % 3};{row % 9},25" for row in range(NUM)]
    text = "\n".join(["smiles;x;Lösungsmittel;y", *rows])
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    guess = guess_table(tmp_path / "t.csv")
    assert guess.csv == {"encoding": "cp1252", "decimal": ","}
    assert len(guess.remarks) == 2
    assert role_and_entry(guess, "Lösungsmittel")[0] is Role.CATEGORY
    assert role_and_entry(guess, "x")[0] is Role.NUMERIC
    assert role_and_entry(guess, "y")[0] is Role.TARGET


def test_rows_with_faults_are_left_out_and_told(tmp_path: Path) -> None:
    x: list[Any] = ["< 0.1", *map(str, numbers()[1:])]
    guess = guessed(tmp_path, x=x)
    assert guess.skips
    assert guess.num_rows == NUM - 1
    assert "1 row" in guess.remarks[0]
    assert "< 0.1" in guess.remarks[1]


def test_the_tables_own_split_and_groups_say_how_it_is_split(tmp_path: Path) -> None:
    split = ["train", "train", "validation", "test"] * 30
    few = [f"P{row // 20}" for row in range(NUM)]
    assert guessed(tmp_path, split=split).split == {"strategy": "column", "column": "split"}
    assert guessed(tmp_path, x=numbers()).split == {"strategy": "random"}
    assert guessed(tmp_path, split=["Training", "dev", "holdout"] * 40).split["column"] == "split"
    by_fold = guessed(tmp_path, cv_fold=[row % 5 for row in range(NUM)])
    assert by_fold.split == {"strategy": "folds", "column": "cv_fold"}
    without_validation = guessed(tmp_path, split=["train", "test"] * 60)
    assert without_validation.split == {"strategy": "random"}
    assert "no row is in validation" in without_validation.why_split
    folds = {"strategy": "group", "folds": 6}
    assert guessed(tmp_path, patient=few).split == folds
    gaps = [None, *few[1:]]
    assert guessed(tmp_path, patient=gaps).split == {"strategy": "random"}


def test_names_that_come_twice_are_not_used(tmp_path: Path) -> None:
    rows = "\n".join(f"{POLYMERS[row % 4]},{row},{row * 2},{row % 7}" for row in range(NUM))
    (tmp_path / "t.csv").write_text(f"smiles,x,x,y\n{rows}\n")
    guess = guess_table(tmp_path / "t.csv")
    assert role_and_entry(guess, "x")[0] is Role.IGNORED


def test_named_columns_have_their_roles(tmp_path: Path) -> None:
    named = Named(
        strings=("smiles",),
        numeric=("x",),
        categories=("code",),
        targets=("y", "good"),
        group="lab",
        ignored=("z",),
    )
    guess = guessed(
        tmp_path,
        named,
        x=numbers(),
        z=numbers(),
        w=numbers(),
        code=[row % 3 for row in range(NUM)],
        lab=[row % 12 for row in range(NUM)],
        good=[row % 2 for row in range(NUM)],
    )
    roles = {each.column: each.role.value for each in guess.columns}
    assert roles == {
        "smiles": "string",
        "x": "numeric",
        "z": "ignored",
        "w": "ignored",
        "code": "category",
        "lab": "group",
        "good": "target",
        "y": "target",
    }
    assert guess.split == {"strategy": "group"}


def test_a_target_is_guessed_although_all_features_are_named(tmp_path: Path) -> None:
    named = Named(strings=("smiles",), numeric=("x",))
    guess = guessed(tmp_path, named, x=numbers(), good=numbers())
    assert [each.column for each in guess.of(Role.TARGET)] == ["y"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (Named(targets=("yy",)), "there is no column 'yy'.*did you mean 'y'"),
        (Named(targets=("y",), numeric=("y",)), "named twice"),
        (Named(targets=("name",)), "has text of 120 values"),
        (Named(targets=("y",), numeric=("smiles",)), "named as numeric, and has text"),
        (Named(targets=("y",), strings=("x",)), "named as string, and has numbers"),
        (Named(targets=("y",), group="none"), "there is no column 'none'"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, named: Named, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        guessed(tmp_path, named, x=numbers(), name=[f"m{row}x" for row in range(NUM)])


def test_tables_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no table"):
        guess_table(tmp_path / "none.csv")
    pl.DataFrame({"smiles": POLYMERS, "note": ["a"] * 4}).write_csv(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="no column of the table could be a target"):
        guess_table(tmp_path / "t.csv")
    pl.DataFrame({"smiles": POLYMERS, "y": [1.0, 2.0, 3.0, 4.0]}).write_csv(tmp_path / "t.csv")
    with pytest.raises(SplitError):
        guess_table(tmp_path / "t.csv")
