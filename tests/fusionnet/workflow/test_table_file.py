"""A file written batch by batch is the table that the batches are; whoever fails, nobody waits."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from fusionnet.workflow.outputs import TEXT_KINDS
from fusionnet.workflow.table_file import table_file, unfit_for_csv


@pytest.fixture(params=[".parquet", ".csv", ".tsv", ".arrow"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


FRAME = pl.DataFrame(
    {
        "": range(1000),
        'a "quoted", name\n': ["x,y", 'q"', "line\nbreak", None] * 250,
        "number": [0.1, 1e300, -0.0, None] * 250,
        "day": [date(2020, 1, 2), None] * 500,
        "level": pl.Series(["a", "b"] * 500, dtype=pl.Enum(["a", "b"])),
        "nothing": pl.Series([None] * 1000, dtype=pl.Null),
    }
)


@pytest.mark.parametrize("num_rows", [1, 7, 999, 1000])
def test_batches_are_one_table(tmp_path: Path, kind: str, num_rows: int) -> None:
    with table_file(tmp_path / "file", FRAME.schema, kind) as write:
        for start in range(0, len(FRAME), num_rows):
            write(FRAME.slice(start, num_rows))
    if kind in TEXT_KINDS:
        separator = "\t" if kind == ".tsv" else ","
        assert (tmp_path / "file").read_text() == FRAME.write_csv(separator=separator)
    else:
        read = pl.read_parquet if kind == ".parquet" else pl.read_ipc
        written = read(tmp_path / "file")
        assert written.schema == FRAME.schema
        assert written.equals(FRAME)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_a_full_disk_ends_the_writing(kind: str) -> None:
    def write_much() -> None:
        with table_file(Path("/dev/full"), FRAME.schema, kind) as write:
            for _ in range(1000):
                write(FRAME)

    with pytest.raises((OSError, pl.exceptions.PolarsError), match="No space left on device"):
        write_much()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_writer_s_error_is_raised_as_it_is(
    tmp_path: Path, kind: str, error: type[BaseException]
) -> None:
    def fail() -> None:
        with table_file(tmp_path / "file", FRAME.schema, kind) as write:
            write(FRAME)
            raise error

    with pytest.raises(error):
        fail()


def test_every_type_that_polars_writes_as_csv_is_fit() -> None:
    assert unfit_for_csv(FRAME.schema) == []
    unfit = {"a": pl.List(pl.Int8), "b": pl.Struct({"c": pl.Int8}), "d": pl.Binary, "e": pl.Time}
    assert unfit_for_csv(pl.Schema(unfit)) == [
        "a (List(Int8))",
        "b (Struct({'c': Int8}))",
        "d (Binary)",
    ]
