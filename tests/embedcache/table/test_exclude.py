"""Conditions on rows mean the same whatever file the table comes from."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from embedcache.errors import ConfigError
from embedcache.table.read import read_table

CONDITIONS = [
    "x > y",  # two features
    "x > 0.5",
    "x > most",  # one that nobody reads
    "most >= 2 AND t < 30",
    "outcome > 3",  # a label
    "real",  # the stratum, and a truth
    "NOT real",
    "flag = true",  # a truth that nobody reads
    "site > 2",  # a facet, of whole numbers
    "site IN (1, 3)",
    "kind = 'a'",
    "length(smiles) > 8",
    "smiles LIKE '%O%'",
    "patient = 'P03'",
    "outcome IS NULL",
]


@pytest.fixture
def frame(frame_of: Callable) -> pl.DataFrame:
    return frame_of().with_columns(most=(pl.int_range(pl.len()) % 5).cast(pl.Float64))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_as_many_rows_of_a_csv_as_of_parquet(
    condition: str, frame: pl.DataFrame, make_study: Callable, tmp_path: Path
) -> None:
    wanted = frame.filter(pl.sql_expr(condition)).height
    assert 0 < wanted < 240
    for file in ("t.parquet", "t.csv"):
        study = make_study(tmp_path, frame, file, exclude_rows=[condition])
        study = study.but(stratum=None, row_weight=None)
        table = read_table(study.data.path, study.data, study.targets, study.split)
        assert (table.num_rows, table.num_excluded) == (240 - wanted, wanted)
        rows = pl.concat(table.blocks(["numeric:x", "facet:site"], 1000))
        kept = frame.filter(~pl.sql_expr(condition).fill_null(False))
        assert rows["numeric:x"].to_list() == kept["x"].cast(pl.Float32).to_list()


def test_codes_stay_text_in_conditions(
    frame: pl.DataFrame, make_study: Callable, tmp_path: Path
) -> None:
    coded = frame.with_columns(code=pl.lit("00") + pl.col("site").cast(pl.String))
    study = make_study(tmp_path, coded, "t.csv", exclude_rows=["code = '002'"])
    table = read_table(study.data.path, study.data, study.targets, study.split)
    assert table.num_excluded == (frame["site"] == 2).sum()


@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("x > 'a'", "'x > 'a'' is not a condition"),
        ("kind > 3", "is not a condition"),
        ("mots > 3", "names 'mots', which is no column of the table; did you mean 'most'"),
        ("x >", "is not a condition"),
        ("x + 1", "is not a condition"),
    ],
)
def test_what_is_no_condition_is_refused_by_its_key(
    condition: str,
    message: str,
    file: str,
    frame: pl.DataFrame,
    make_study: Callable,
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, frame, file, exclude_rows=[condition])
    with pytest.raises(ConfigError) as caught:
        read_table(study.data.path, study.data, study.targets, study.split)
    assert str(caught.value).startswith("data.exclude_rows: ")
    assert message in str(caught.value)
