"""The same table is the same rows however it is written."""

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numcodecs.zstd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from embedcache.config.table import DataConfig
from embedcache.errors import ConfigError, TableError
from embedcache.schema import parse_config
from embedcache.table.read import read_table
from embedcache.table.reader import open_source
from embedcache.table.spelling import spelled_rows
from embedcache.values import spelled

COLUMNS = ["string:polymer", "numeric:x", "category:kind", "target:ef", "group", "stratum"]


def rows_of(study: Any) -> pl.DataFrame:
    table = read_table(study.data.path, study.data, study.targets, study.split)
    rows = pl.concat(table.blocks([*COLUMNS, "facet:site"], 1000))
    names = {"string:polymer": table.strings["polymer"].text, **dict(table.categories)}
    return rows.with_columns(pl.lit(str(names)).alias("names"))


def as_text(frame: pl.DataFrame, separator: str = ",", decimal: str = ".") -> str:
    text = frame.with_columns(
        pl.when(pl.lit(decimal == ","))
        .then(pl.col(name).cast(pl.String).str.replace(".", ",", literal=True))
        .otherwise(pl.col(name).cast(pl.String))
        .alias(name)
        for name in ("x", "y", "t", "same", "outcome")
    )
    return text.write_csv(separator=separator)


def write_xlsx(frame: pl.DataFrame, file: Path) -> None:
    """Write a workbook of one sheet: numbers as numbers, all else as text."""
    rows = []
    for record in [frame.columns, *frame.rows()]:
        cells = []
        for value in record:
            if value is None:
                cells.append("<c/>")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                cells.append(f'<c t="inlineStr"><is><t>{escape(str(value))}</t></is></c>')
            else:
                cells.append(f"<c><v>{value!r}</v></c>")
        rows.append(f"<row>{''.join(cells)}</row>")
    main = "http://schemas.openxmlformats.org"
    office = f"{main}/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{main}/package/2006/content-types"><Default'
        ' Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-office'
        'document.spreadsheetml.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml"'
        ' ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{main}/package/2006/relationships"><Relationship'
        f' Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}/spreadsheetml/2006/main" xmlns:r="{office}">'
        '<sheets><sheet name="s" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{main}/package/2006/relationships">'
        f'<Relationship Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}/spreadsheetml/2006/main"><sheetData>'
        f"{''.join(rows)}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def write_folder(frame: pl.DataFrame, folder: Path) -> None:
    folder.mkdir()
    frame.head(100).write_parquet(folder / "part-0.parquet")
    (folder / "more").mkdir()
    frame.tail(140).write_parquet(folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    frame.head(3).write_parquet(folder / ".part-9.parquet")


Write = Callable[[pl.DataFrame, Path], Any]
WRITTEN: list[tuple[str, Write, dict[str, Any]]] = [
    ("t.csv", lambda frame, file: file.write_text(as_text(frame)), {}),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame, ";")), {}),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame, "|")), {}),
    ("t.txt", lambda frame, file: file.write_text(as_text(frame, "\t")), {}),
    ("t.tsv", lambda frame, file: file.write_text(as_text(frame, "\t")), {}),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame, "@")), {"separator": "@"}),
    (
        "t.csv",
        lambda frame, file: file.write_text(as_text(frame, ";", ",")),
        {"decimal": ","},
    ),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame), encoding="utf-8-sig"), {}),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame), encoding="utf-16"), {}),
    (
        "t.csv",
        lambda frame, file: file.write_text(as_text(frame), encoding="cp1252"),
        {"encoding": "cp1252"},
    ),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame).replace("\n", "\r\n")), {}),
    ("t.csv", lambda frame, file: file.write_text(as_text(frame) + "\n\n,,,,,,,,,,,\n"), {}),
    ("t.csv.gz", lambda frame, file: file.write_bytes(gzip.compress(as_text(frame).encode())), {}),
    ("t.CSV.bz2", lambda frame, file: file.write_bytes(bz2.compress(as_text(frame).encode())), {}),
    (
        "t.tsv.xz",
        lambda frame, file: file.write_bytes(lzma.compress(as_text(frame, "\t").encode())),
        {},
    ),
    (
        "t.csv.zst",
        lambda frame, file: file.write_bytes(numcodecs.zstd.compress(as_text(frame).encode(), 3)),
        {},
    ),
    (
        "t.csv.gz",
        lambda frame, file: file.write_bytes(gzip.compress(as_text(frame).encode("utf-16"))),
        {},
    ),
    ("t.arrow", lambda frame, file: frame.write_ipc(file), {}),
    ("t.feather", lambda frame, file: frame.write_ipc(file), {}),
    ("t.xlsx", write_xlsx, {}),
    ("parts", write_folder, {}),
]


@pytest.mark.parametrize(
    ("name", "write", "options"),
    WRITTEN,
    ids=[f"{k}-{name}" for k, (name, *_) in enumerate(WRITTEN)],
)
def test_a_table_is_the_same_however_it_is_written(
    name: str,
    write: Write,
    options: dict[str, Any],
    make_study: Callable,
    frame_of: Callable,
    tmp_path: Path,
) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("fastexcel", reason="fastexcel, of the extra excel, is not installed")
    frame = frame_of().with_columns(pl.col("kind").replace("b", "bé"))
    categories = [{"column": "kind"}]
    wanted = rows_of(make_study(tmp_path, frame, categories=categories))
    write(frame, tmp_path / name)
    study = make_study(tmp_path, frame, categories=categories, csv=options)
    assert_frame_equal(rows_of(study.but(path=str(tmp_path / name))), wanted)


def test_hive_folders_have_their_key_as_a_column(tmp_path: Path) -> None:
    for site in ("north", "south"):
        (tmp_path / f"t/site={site}").mkdir(parents=True)
        pl.DataFrame({"x": [1.0]}).write_parquet(tmp_path / f"t/site={site}/0.parquet")
    data = DataConfig(path=str(tmp_path / "t"), strings=({"name": "s", "column": "site"},))
    assert open_source(tmp_path / "t", data).frame.collect()["site"].to_list() == ["north", "south"]


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    data = DataConfig(path=str(tmp_path), strings=({"name": "s", "column": "site"},))
    with pytest.raises(TableError, match=r"no Parquet file in the folder .*; --input must"):
        open_source(tmp_path, data, "--input")


def test_a_decimal_comma_is_named_and_a_wrong_one_finds_no_number(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv")
    Path(study.data.path).write_text(as_text(frame_of(), ";", ","))
    with pytest.raises(TableError, match=r"decimal comma, set data\.csv\.decimal: ','"):
        rows_of(study)
    Path(study.data.path).write_text(as_text(frame_of(), ";"))
    with pytest.raises(TableError, match="'x': not a number: 240 rows"):
        rows_of(study.but(csv={"decimal": ","}))


@pytest.mark.parametrize("separator", [",", ";", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_line_that_names_the_separator_is_read_over(
    make_study: Callable, frame_of: Callable, tmp_path: Path, separator: str, start: str
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv")
    plain = rows_of(study)
    text = f"{start}sep={separator}\r\n{frame_of().write_csv(separator=separator)}"
    Path(study.data.path).write_text(text, encoding="utf-8")
    assert rows_of(study).equals(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], *(f"r,{line}" for line in lines[1:])], "one cell more than the"),
        (lambda lines: [lines[0], *(f"{line}," for line in lines[1:])], "the end of each line"),
        (lambda lines: ["a title, of 2024", *lines], "cells, the first line 2: if it is a title"),
    ],
)
def test_a_header_that_fits_no_row_is_one_violation(
    make_study: Callable, frame_of: Callable, tmp_path: Path, change: Callable, message: str
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv")
    lines = frame_of().write_csv().splitlines()
    Path(study.data.path).write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(TableError, match="in 1 way") as error:
        rows_of(study)
    assert message in str(error.value)
    with pytest.raises(TableError, match="in 1 way"):  # it is no matter of rows
        rows_of(study.but(on_invalid="skip"))


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"PK\x03\x04...", ".xlsx"), (b"PAR1...", ".parquet"), (b"\x1f\x8b...", ".csv.gz")],
)
def test_another_kind_of_file_is_told_its_name(
    make_study: Callable, frame_of: Callable, tmp_path: Path, content: bytes, name: str
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv")
    Path(study.data.path).write_bytes(content)
    with pytest.raises(TableError, match=rf"no text.*name it \{name}"):
        rows_of(study)


def test_floats_that_may_stand_for_several_numbers_name_nothing(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    numbers = pl.int_range(pl.len()) + 143349558619761320
    frame = frame_of().with_columns(patient=numbers)
    assert rows_of(make_study(tmp_path, frame))["group"].n_unique() == len(frame)
    study = make_study(tmp_path, frame.with_columns(pl.col("patient").cast(pl.Float64)))
    with pytest.raises(
        TableError, match=f"group column 'patient': floats that may.*{len(frame)} rows"
    ):
        rows_of(study)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": '"'}, "is a quote"),
        ({"separator": ",", "decimal": ","}, "the decimal mark"),
        ({"separator": "·"}, "is no ASCII character"),
        ({"separator": "ab"}, "at most 1"),
        ({"encoding": "klingon"}, "does not know as one of text"),
        ({"encoding": "rot13"}, "does not know as one of text"),
    ],
    ids=repr,
)
def test_options_that_cannot_be_are_refused(options: dict[str, str], message: str) -> None:
    values = {"path": "t.csv", "strings": [{"name": "s", "column": "s"}], "csv": options}
    with pytest.raises(ConfigError, match=message):
        parse_config(DataConfig, values, "test")


def test_another_encoding_than_the_files_is_said(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv", csv={"encoding": "ascii"})
    Path(study.data.path).write_bytes(as_text(frame_of()).encode() + b"\xe9")
    with pytest.raises(TableError, match="is not UTF-8, first in line 242"):
        rows_of(study)
    study = study.but(csv={"encoding": "utf-16"})
    with pytest.raises(TableError, match=r"is not written in data\.csv\.encoding"):
        rows_of(study)


@given(st.text(alphabet="0123456789.+-eE aTrueFALSé", max_size=8))
def test_a_value_is_spelled_alike_in_python_and_in_rows(text: str) -> None:
    rows = pl.DataFrame({"t": [text]}).select(spelled_rows(pl.col("t"))).item()
    assert rows == spelled(text)
    assert spelled(rows) == rows


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("007", "7"),
        ("7.0", "7"),
        ("+7", "7"),
        ("-07.50", "-7.5"),
        ("0.0", "0"),
        ("00", "0"),
        (" True ", "true"),
        ("FALSE", "false"),
        ("1e3", "1e3"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("7.5.0", "7.5.0"),
        ("A07", "A07"),
    ],
)
def test_codes_have_one_spelling(text: str, wanted: str) -> None:
    assert spelled(text) == wanted


def test_codes_of_all_types_are_one_category(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of()
    codes = pl.Series([7, 8, 9] * 80)
    spellings = [
        codes,
        codes.cast(pl.Float64),
        codes.cast(pl.String).str.zfill(3),
        (codes.cast(pl.String) + ".0 "),
        codes.cast(pl.String).cast(pl.Categorical),
    ]
    wanted = None
    for k, spelling in enumerate(spellings):
        for suffix in ("parquet", "csv"):
            settings = {"categories": [{"column": "kind", "values": ["7", "8", "009"]}]}
            study = make_study(
                tmp_path, frame.with_columns(kind=spelling), f"{k}.{suffix}", **settings
            )
            table = read_table(study.data.path, study.data, study.targets, study.split)
            assert table.categories == (("kind", ("7", "8", "9")),)
            found = pl.concat(table.blocks(["category:kind"], 1000))
            wanted = found if wanted is None else wanted
            assert_frame_equal(found, wanted)
