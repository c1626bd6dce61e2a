"""Tables: everything that is wrong in one report with its rows, nothing else refused, the same from
Parquet and CSV.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.config.columns import StringColumn
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError, TableError
from embedcache.table.columns import NO_VALUE
from embedcache.table.read import read_table
from embedcache.table.table import Table

FORMATS = ("table.parquet", "table.csv")


def read(study: Any) -> Table:
    return read_table(study.data.path, study.data, study.targets, study.split)


def report_of(study: Any) -> str:
    with pytest.raises(TableError) as caught:
        read(study)
    return str(caught.value)


def with_cells(frame: pl.DataFrame, column: str, cells: dict[int, Any]) -> pl.DataFrame:
    """Return the frame with some cells of a column replaced."""
    values = frame[column].to_list()
    for row, value in cells.items():
        values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame[column].dtype))


@pytest.fixture(params=FORMATS)
def study_of(request: pytest.FixtureRequest, make_study: Callable, tmp_path: Path) -> Callable:
    """Make a study of a frame, once as Parquet and once as CSV."""
    return lambda frame, **settings: make_study(tmp_path, frame, request.param, **settings)


def test_a_sound_table_is_read_as_it_is(study_of: Callable, frame_of: Callable) -> None:
    frame = frame_of()
    table = read(study_of(frame))
    assert table.num_rows == 240
    assert [target.name for target in table.targets] == ["ef", "opt"]
    assert table.absent_targets == ("aux",)
    assert table.categories == (("kind", ("c", "a", "b")),)
    assert table.facets == (("real", ("false", "true")), ("site", ("1", "2", "3")))
    assert table.groups is not None
    assert table.groups.values == tuple(f"P{g:02d}" for g in range(12))
    assert table.groups.num_rows.tolist() == [20] * 12
    good = frame.group_by("patient").agg(pl.col("good").sum()).sort("patient")["good"]
    assert table.groups.counts[:, 1].tolist() == good.to_list()
    assert [table.strata[code] for code in table.groups.stratum] == [
        "true" if g % 3 == 0 else "false" for g in range(12)
    ]


@pytest.mark.parametrize("rows_at_once", [7, 64, 1000])
def test_blocks_are_the_rows_in_order(
    study_of: Callable, frame_of: Callable, rows_at_once: int
) -> None:
    frame = frame_of()
    table = read(study_of(frame))
    columns = [
        "string:polymer",
        "numeric:x",
        "category:kind",
        "target:ef",
        "group",
        "weight",
        "facet:site",
    ]
    blocks = pl.concat(table.blocks(columns, rows_at_once))
    spellings, kinds = table.spellings["polymer"].values, table.categories[0].values
    assert [spellings[k] for k in blocks["string:polymer"]] == frame["smiles"].to_list()
    assert [kinds[k] for k in blocks["category:kind"]] == frame["kind"].to_list()
    assert [f"P{g:02d}" for g in blocks["group"]] == frame["patient"].to_list()
    np.testing.assert_array_equal(
        blocks["numeric:x"].to_numpy(), frame["x"].to_numpy().astype(np.float32)
    )
    assert blocks["target:ef"].null_count() == frame["outcome"].null_count()
    assert blocks["weight"].to_list() == [5.0 if real else 1.0 for real in frame["real"]]


SINGLE = [
    ("x", {3: None, 9: None}, ["numeric column 'x': null or NaN: 2 rows", "rows 3, 9"]),
    ("x", {5: float("nan")}, ["numeric column 'x': null or NaN: 1 row; row 5"]),
    (
        "x",
        {5: float("inf"), 6: float("-inf")},
        ["numeric column 'x': infinite: 2 rows", "rows 5, 6"],
    ),
    ("x", {5: 1e39}, ["too large for float32"]),
    (
        "x",
        {k: 12_000.0 for k in range(10, 17)},
        [
            "above 50 mm: 7 rows (12000)",
            "divided by 1,000 they would all be in range",
            "rows 10, 11, 12, 13, 14, ...",
        ],
    ),
    ("x", {4: 50.5}, ["above 50 mm: 1 row (50.5); row 4"]),
    ("x", {4: 50.5, 5: 190.0}, ["above 50 mm: 2 rows (50.5 to 190); rows 4, 5"]),
    ("x", {4: -700.0, 8: -90.0}, ["below -50 mm: 2 rows (-700 to -90); divided by 100"]),
    ("y", {4: 0.0}, ["transform log10 needs values above 0: 1 row"]),
    ("y", {4: 1e-60}, ["transform log10 needs values above 0: 1 row"]),
    (
        "t",
        {4: 298.15, 5: 310.0},
        ["above 100 degC: 2 rows (298.15 to 310); shifted by -273.15 they would all be in range"],
    ),
    ("t", {4: 100.5, 5: 190.0}, ["above 100 degC: 2 rows (100.5 to 190); rows 4, 5"]),
    ("t", {4: -273.15}, ["transform inverse_kelvin needs values above -273.15"]),
    ("smiles", {4: None}, ["string column 'smiles': null or empty: 1 row; row 4"]),
    ("smiles", {4: "  ", 5: None}, ["string column 'smiles': null or empty: 2 rows; rows 4, 5"]),
    (
        "smiles",
        {4: "CCO", 11: "CCO", 12: "C1CC"},
        [
            "'CCO' is not a psmiles: it has no endpoint",
            "2 rows: rows 4, 11",
            "'C1CC' is not a psmiles",
        ],
    ),
    ("kind", {4: "A", 7: "A"}, ["unknown category 'A'; did you mean 'a'?: 2 rows; rows 4, 7"]),
    ("kind", {4: None}, ["category column 'kind': null or empty: 1 row; row 4"]),
    ("patient", {4: None, 5: "  "}, ["group column 'patient': null or empty: 2 rows", "rows 4, 5"]),
    (
        "real",
        {4: None},
        ["stratum column 'real': null or empty: 1 row", "row_weight column 'real': null: 1 row"],
    ),
    ("real", {0: False}, ["stratum column: 1 group with several values, e.g. 'P00'"]),
    ("outcome", {4: 340.0}, ["target column 'outcome': above 100: 1 row (340); divided by 10"]),
    ("outcome", {k: None for k in range(240)}, ["target column 'outcome': no row has a label"]),
    (
        "good",
        {k: True for k in range(240)},
        ["target column 'good': all 240 labels belong to one class, 1"],
    ),
]


@pytest.mark.parametrize(
    ("column", "cells", "messages"),
    SINGLE,
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_one_violation_is_reported_with_count_and_rows(
    study_of: Callable, frame_of: Callable, column: str, cells: dict[int, Any], messages: list[str]
) -> None:
    report = report_of(study_of(with_cells(frame_of(), column, cells)))
    for message in messages:
        assert message in report


def test_all_violations_are_in_one_report(study_of: Callable, frame_of: Callable) -> None:
    frame = frame_of()
    frame = with_cells(with_cells(frame, "x", {3: None, 4: 99.0}), "smiles", {5: "CCO"})
    frame = with_cells(with_cells(frame, "kind", {6: "z"}), "patient", {7: ""}).rename(
        {"t": "T ", "good": "goods"}
    )
    report = report_of(study_of(frame))
    lines = report.splitlines()
    assert "breaks its config in 7 ways" in lines[0]
    assert len(lines) == 8
    for message in (
        "'t' is missing; did you mean 'T '?",
        "'good' is missing; did you mean 'goods'?",
        "null or NaN: 1 row; row 3",
        "above 50 mm",
        "'CCO'",
        "'z'",
    ):
        assert message in report, message
    assert "no labels" not in report


def test_wrong_types_are_named(make_study: Callable, frame_of: Callable, tmp_path: Path) -> None:
    frame = frame_of().with_columns(
        pl.col("x").cast(pl.String),
        pl.lit(1.5).alias("smiles"),
        pl.lit(b"P").alias("patient"),
        pl.lit("2020-01-01").str.to_date().alias("outcome"),
    )
    report = report_of(make_study(tmp_path, frame))
    assert "numeric column 'x' has type String, expected numbers or booleans" in report
    assert "string column 'smiles' has type Float64, expected text" in report
    assert "group column 'patient' has type Binary" in report
    assert "target column 'outcome' has type Date" in report


def test_text_among_csv_numbers_is_found_and_shown(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(pl.col("x").cast(pl.String), pl.col("good").cast(pl.String))
    frame = with_cells(with_cells(frame, "x", {200: "n/a", 201: "1,5"}), "good", {3: "yes", 4: "2"})
    report = report_of(make_study(tmp_path, frame, "table.csv"))
    line = "numeric column 'x': not a number: 2 rows, e.g. '1,5', 'n/a'"
    assert (
        f"{line}; if that stands for a missing value, list it in data.null_values; rows" in report
    )
    assert (
        "target column 'good': not a number: 1 row, e.g. 'yes'; name the negative and the positive"
        in report
    )
    assert "`classes`: negative, positive): 1 row, e.g. 2; row 4" in report


def test_a_binary_target_reads_numbers_booleans_and_words_alike(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of()
    expected = frame["good"].cast(pl.Float32).to_list()
    spelled = [
        pl.col("good").cast(pl.Int8),
        pl.col("good").cast(pl.Float64),
        pl.col("good").cast(pl.String),
        pl.col("good").cast(pl.String).cast(pl.Categorical),
    ]
    for k, spelling in enumerate(spelled):
        for suffix in ("parquet", "csv"):
            table = read(make_study(tmp_path, frame.with_columns(spelling), f"t{k}.{suffix}"))
            assert pl.concat(table.blocks(["target:opt"], 100))["target:opt"].to_list() == expected


@pytest.mark.parametrize(
    "text", ["patient,x,x\nP,1,2\n", '"patient","x",x\nP,1,2\n', "\ufeffpatient,x,x\nP,1,2\n"]
)
def test_duplicate_csv_names_are_found(make_study: Callable, tmp_path: Path, text: str) -> None:
    study = make_study(tmp_path, file="table.csv")
    Path(study.data.path).write_text(text, encoding="utf-8")
    report = report_of(study)
    assert "numeric column 'x' appears more than once in the header" in report
    assert "group column 'patient' is missing" not in report


def test_duplicate_parquet_names_are_found(make_study: Callable, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    file = Path(study.data.path)
    pl.DataFrame({"aa": [1.0], "ab": [2.0]}).write_parquet(file)
    file.write_bytes(file.read_bytes().replace(b"ab", b"aa"))
    assert "more than one occurrence" in report_of(study)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.doc", b"x", "expected a file that ends in .parquet, .csv"),
        ("table.xlsx", b"x", "cannot be read as a spreadsheet"),
        ("table.csv.gz", b"x", "cannot be unpacked: Not a gzipped file"),
        ("table.csv.bz2", b"x", "cannot be unpacked"),
        ("table.csv.xz", b"x", "cannot be unpacked"),
        ("table.csv.zst", b"x", "cannot be unpacked"),
        ("table.arrow", b"x", "cannot be read"),
        ("table.parquet", b"this is not a table", "cannot be read"),
        ("table.csv", b"", "cannot be read: empty CSV"),
        ("table.csv", b"patient,x\nP,1\nP\xff,1\n", "is not UTF-8, first in line 3"),
        ("table.csv", b"patient,\xe9\nP,1\n", "is not UTF-8, first in line 1"),
        ("table.csv", b"patient,x\nP,1\nP,1,2,3\n", "decimal comma): 1 row, e.g. 4; row 1"),
        ("table.csv", b"patient,x\nP,1,2,3\n", "each row has 4 cells, the first line 2"),
        ("table.csv", b'patient,x\nP,1\n"P,2\nP,3\n', "never closed, in or behind row 1"),
        ("table.csv", b'patient,"x\nP,1\nP,2\n', "header cannot be read, line 3: unexpected end"),
        ("table.csv", b"x" * 200_000 + b"\n1\n", "line 1: field larger than field limit (131072)"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_table_is_refused(
    make_study: Callable, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    study = make_study(tmp_path).but(path=str(tmp_path / name))
    (tmp_path / name).write_bytes(content)
    study = study.but(
        numeric=[{"column": "x"}],
        strings=[{"name": "polymer", "column": "patient"}],
        categories=[],
        stratum=None,
        row_weight=None,
        report_by=(),
    )
    assert message in report_of(study)


def test_a_missing_table_is_refused(make_study: Callable, tmp_path: Path) -> None:
    assert "there is no table" in report_of(
        make_study(tmp_path).but(path=str(tmp_path / "other.parquet"))
    )


@pytest.mark.parametrize("file", FORMATS)
def test_an_empty_table_is_refused(
    make_study: Callable, frame_of: Callable, tmp_path: Path, file: str
) -> None:
    assert "the table has no rows" in report_of(make_study(tmp_path, frame_of().head(0), file))


def test_nulls_that_stand_for_a_value_are_filled(study_of: Callable, frame_of: Callable) -> None:
    frame = with_cells(with_cells(frame_of(), "x", {3: None}), "smiles", {4: None})
    settings = {
        "numeric": [{"column": "x", "if_null": 2.5, "high": 50}],
        "strings": [{"name": "polymer", "column": "smiles", "kind": "smiles", "if_null": ""}],
    }
    table = read(study_of(frame, **settings))
    blocks = pl.concat(table.blocks(["numeric:x", "string:polymer"], 100))
    assert blocks["numeric:x"][3] == 2.5
    assert table.spellings["polymer"].values[blocks["string:polymer"][4]] == ""
    assert "" in table.strings["polymer"].text


def test_what_fills_a_null_is_checked_too(study_of: Callable, frame_of: Callable) -> None:
    frame = with_cells(frame_of(), "x", {3: None})
    assert "above 50" in report_of(
        study_of(frame, numeric=[{"column": "x", "if_null": 1000.0, "high": 50}])
    )


def test_a_bound_is_compared_as_it_is_stored(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(pl.lit(0.1).cast(pl.Float32).alias("x"))
    assert (
        read(
            make_study(tmp_path, frame, numeric=[{"column": "x", "low": 0.0, "high": 0.1}])
        ).num_rows
        == 240
    )


def test_an_optional_target_without_labels_is_absent(
    study_of: Callable, frame_of: Callable
) -> None:
    frame = frame_of().with_columns(pl.lit(None, dtype=pl.Float64).alias("auxiliary"))
    table = read(study_of(frame))
    assert table.absent_targets == ("aux",)
    assert "target:aux" not in [f"target:{target.name}" for target in table.targets]


@pytest.mark.parametrize(("transform", "low", "broken"), [("log10", 0, [3, 9]), ("log1p", -1, [9])])
def test_labels_lie_in_the_domain_of_their_transform(
    study_of: Callable, frame_of: Callable, transform: str, low: int, broken: list[int]
) -> None:
    cells: dict[int, Any] = {3: 1e-60, 9: -1.0, 11: None}
    frame = with_cells(frame_of().with_columns(pl.col("outcome").abs()), "outcome", cells)
    good = {"name": "opt", "column": "good", "kind": "binary"}
    targets = [{"name": "ef", "column": "outcome", "transform": transform}, good]
    rows = f"{len(broken)} row{'s' * (len(broken) > 1)}"
    report = report_of(study_of(frame, targets=targets))
    assert f"'outcome': transform {transform} needs values above {low}: {rows}" in report
    assert f"{', '.join(map(str, broken))}" in report


def test_a_feature_that_is_a_target_is_refused(study_of: Callable, frame_of: Callable) -> None:
    report = report_of(study_of(frame_of(), numeric=[{"column": "x"}, {"column": "good"}]))
    assert "column 'good' is both a feature and a target" in report


def test_a_row_weight_that_fits_no_row_is_refused(study_of: Callable, frame_of: Callable) -> None:
    study = study_of(frame_of(), row_weight={"column": "kind", "equals": "d", "weight": 2.0})
    assert "no row equals 'd'" in report_of(study)


def test_a_facet_shows_rows_without_a_value(study_of: Callable, frame_of: Callable) -> None:
    table = read(study_of(with_cells(frame_of(), "site", {0: None})))
    assert table.facets[1].values == (NO_VALUE, "1", "2", "3")


def test_too_many_facets_are_refused(
    study_of: Callable, frame_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.table.survey.MOST_FACETS", 2)
    assert "'site' has 3 distinct values, at most 2" in report_of(study_of(frame_of()))


def test_many_bad_strings_are_counted_not_listed(study_of: Callable, frame_of: Callable) -> None:
    report = report_of(
        study_of(with_cells(frame_of(), "smiles", {k: "C" * (k + 1) for k in range(40)}))
    )
    assert report.count("is not a psmiles") == 10
    assert "40 strings refused in all: 40 'has no endpoint [*]'" in report


@pytest.mark.parametrize(
    ("num_unknown", "last"),
    [
        (10, None),
        (11, "and 1 more unknown category"),
        (1200, "and 1,190 more unknown categories"),
    ],
)
def test_many_unknown_categories_are_counted_not_listed(
    make_study: Callable, frame_of: Callable, tmp_path: Path, num_unknown: int, last: str | None
) -> None:
    cells = {row: f"z{row}" for row in range(num_unknown)}
    frame = with_cells(frame_of(num_unknown + 240), "kind", cells)
    lines = report_of(make_study(tmp_path, frame)).splitlines()[1:]
    assert sum("unknown category 'z" in line for line in lines) == 10
    assert len(lines) == (10 if last is None else 11)
    assert last is None or lines[-1] == f"  - category column 'kind': {last}"


def test_a_contradiction_in_the_config_is_a_config_error(
    make_study: Callable, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"split\.stratify_by names 'outcome'"):
        read(make_study(tmp_path).but(split={"stratify_by": "outcome"}))


def test_the_tables_own_split_is_checked(study_of: Callable, frame_of: Callable) -> None:
    frame = frame_of().with_columns(pl.Series("fold", ["train", "validation", "test"] * 80))
    split = {"strategy": "column", "column": "fold"}
    assert read(study_of(frame).but(split=split)).num_rows == 240
    spelled = {8: "vali", 9: None, 10: "Tra", 11: "vali", 12: "unseen"}
    assert (
        "must be one of train, validation, test: 5 rows; 2 rows 'vali', did you mean 'validation'?;"
        " 1 row without a value; 1 row 'Tra', did you mean 'train'?; 1 row 'unseen'; say what they"
        " stand for, split.values: {train: [...], validation: [...], test: [...]}; rows 8, 9,"
    ) in report_of(study_of(with_cells(frame, "fold", spelled)).but(split=split))


def test_rows_can_be_left_out_by_condition(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"smiles": ["[*]CC[*]", "[*]CCO[*]", "not one", "[*]CC[*]"], "y": [1.0, 2.0, 3.0, None]}
    )
    for name, write in (("t.parquet", frame.write_parquet), ("t.csv", frame.write_csv)):
        write(tmp_path / name)
        data = DataConfig(
            path=str(tmp_path / name),
            strings=(StringColumn(name="p", column="smiles"),),
            exclude_rows=("smiles LIKE 'not%'",),
        )
        targets, split = (TargetColumn(name="y", column="y"),), SplitConfig(strategy="random")
        table = read_table(data.path, data, targets, split)
        assert (table.num_rows, table.num_excluded) == (3, 1)
        for wrong in ("no_such > 1", "smiles >", "SELECT"):
            with pytest.raises(ConfigError, match=r"data\.exclude_rows"):
                read_table(
                    data.path, data.model_copy(update={"exclude_rows": (wrong,)}), targets, split
                )


def test_a_blank_string_is_what_a_null_stands_for(study_of: Callable, frame_of: Callable) -> None:
    frame = with_cells(frame_of(), "smiles", {3: "", 4: " \t", 5: None})
    strings = [{"name": "polymer", "column": "smiles", "if_null": "[*]O[*]"}]
    table = read(study_of(frame, strings=strings)).strings["polymer"]
    assert dict(zip(table.text, table.num_rows.tolist(), strict=True))["[*]O[*]"] == 3


def test_numbers_are_no_texts(study_of: Callable, frame_of: Callable) -> None:
    numbers = [f"{row / 4:g}" for row in range(240)]
    frame = frame_of().with_columns(pl.Series("smiles", numbers))
    strings = [{"name": "polymer", "column": "smiles", "kind": "text"}]
    report = report_of(study_of(frame, strings=strings))
    assert "'smiles': every string is a number, e.g. '0'; " in report
    assert "data.numeric" in report
    read(study_of(with_cells(frame, "smiles", {7: "A36"}), strings=strings))
    assert "240 'is a number'" in report_of(study_of(frame))


def test_a_table_that_goes_while_it_is_read_is_named(
    study_of: Callable, frame_of: Callable
) -> None:
    study = study_of(frame_of())
    table = read(study)
    file = Path(study.data.files[0])
    if file.suffix == ".parquet":
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(TableError, match=rf"{file} changed or became unreadable"):
            list(table.blocks(["numeric:x"], 100))
    file.unlink()
    with pytest.raises(TableError, match=rf"{file} changed or became unreadable"):
        list(table.blocks(["numeric:x"], 100))
