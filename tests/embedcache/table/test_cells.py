"""Cells are counted as the csv module and polars read them, wherever the blocks of bytes end."""

import csv
import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from embedcache.table import cells
from embedcache.table.cells import count_cells

CELLS = st.text(alphabet='ab ,;"\n1é', max_size=4)
RECORDS = st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=8)


@examples(cost=1)
@given(
    records=RECORDS,
    end=st.sampled_from(["\n", "\r\n"]),
    separator=st.sampled_from([",", ";"]),
    block=st.integers(1, 40),
    ends=st.booleans(),
)
def test_counts_are_those_of_the_csv_module(
    records: list[list[str]],
    end: str,
    separator: str,
    block: int,
    ends: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(records)
    content = text.getvalue() if ends else text.getvalue().removesuffix(end)
    file = tmp_path_factory.mktemp("cells") / "t.csv"
    file.write_text(content, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "BLOCK_BYTES", block)
        found = count_cells(file, separator)
    read = list(csv.reader(io.StringIO(content, newline=""), delimiter=separator))
    width = max(1, len(read[0])) if read else 0  # csv: a line of nothing has no cell, here one
    wanted = {
        row: max(1, len(record))
        for row, record in enumerate(read[1:])
        if len(record) != width and any(cell.strip() for cell in record)
    }
    blank = [row for row, record in enumerate(read[1:]) if not any(map(str.strip, record))]
    # what the writer made of it may hold quotes alone: a cell of quotes is no blank to csv
    quotes = [row for row in blank_or(read[1:]) if row not in blank]
    assert found.num_records == max(0, len(read) - 1)
    assert found.num_cells == width or not read
    assert sorted({*found.blank.tolist()} - {*quotes}) == sorted({*blank} - {*quotes})
    ragged = dict(zip(found.ragged.tolist(), found.ragged_cells.tolist(), strict=True))
    assert {row: ragged.get(row) for row in wanted if row not in quotes} == {
        row: count for row, count in wanted.items() if row not in quotes
    }
    assert found.open_quote is None
    assert found.not_utf8 is None


def blank_or(records: list[list[str]]) -> list[int]:
    """Return the records whose cells hold nothing but separators, quotes and blanks."""
    return [
        row
        for row, record in enumerate(records)
        if not any(cell.strip(' ,;"\n') for cell in record)
    ]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a,b\n1,2\n3\n4,5,6\n", {"ragged": [1, 2], "ragged_cells": [1, 3]}),
        ('a,b\n1,"x\n,y"\n', {"num_records": 1, "ragged": []}),
        ('a,b\n1,"x""y,"\n', {"num_records": 1, "ragged": []}),
        ("a,b\n\n1,2\n , \n", {"blank": [0, 2], "num_records": 3}),
        ('a,b\n1,2\n"3,4\n5,6\n', {"open_quote": 1}),
        ("a,b", {"num_records": 0, "num_cells": 2}),
        ("", {"num_records": 0, "num_cells": 0}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_what_is_found(
    content: str,
    wanted: dict[str, Any],
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "BLOCK_BYTES", block)
    (tmp_path / "t.csv").write_text(content)
    found = count_cells(tmp_path / "t.csv", ",")
    for name, value in wanted.items():
        have = getattr(found, name)
        assert (have.tolist() if isinstance(value, list) else have) == value, name


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_the_line_that_is_not_utf8_is_named(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "BLOCK_BYTES", block)
    (tmp_path / "t.csv").write_bytes("a,b\né,1\nü,2\n".encode() + b"x\xe9,3\ny,4\n\xff,5\n")
    assert count_cells(tmp_path / "t.csv", ",").not_utf8 == 4


def test_records_are_the_rows_that_polars_reads(tmp_path: Path) -> None:
    # rows are left out by the number of their record
    file = tmp_path / "t.csv"
    file.write_text('a,b\n1,2\n\n  \n,\n"x\ny",3\n"",""\n4,5\n\n')
    found = count_cells(file, ",")
    rows = pl.scan_csv(file, infer_schema=False).with_row_index("row").collect()
    assert found.num_records == rows.height
    assert rows.filter(~pl.col("row").is_in(found.blank.tolist()))["a"].to_list() == [
        "1",
        "x\ny",
        "4",
    ]
