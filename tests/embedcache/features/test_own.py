"""A user's table of features: found by what the key means, and refused with all that is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.config.table import DataConfig
from embedcache.errors import TableError
from embedcache.features.own import OwnTable, OwnTables
from embedcache.schema import parse_config


def tables_of(file: Path, **column: Any) -> tuple[OwnTables, Any]:
    features = [{"table": str(file), "key": "smiles"}]
    string = {"name": "p", "column": "p", "features": features, **column}
    config = {"path": "none.csv", "null_values": ["n/a"], "strings": [string]}
    data = parse_config(DataConfig, config, "test")
    return OwnTables(data), data.strings[0]


def read(file: Path, **column: Any) -> OwnTable:
    tables, string = tables_of(file, **column)
    (table,) = tables.of(string)
    return table


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_keys_are_prepared_as_strings_are(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"own.{suffix}"
    frame = pl.DataFrame(
        {
            "tg": [1.5, None, 3.0, 3.0],
            "smiles": ["*CC*", "[*]OCC[*]", "[Cu]C(C)C[Cu]", "*CC(*)C"],
            "is_soft": [True, False, True, True],
        }
    )
    frame.write_csv(file) if suffix == "csv" else frame.write_parquet(file)
    table = read(file, canonicalize=True, replace={"[Cu]": "[*]"})
    assert table.columns == ("tg", "is_soft")
    found = table.of(["[*]CC([*])C", "[*]CC[*]", "[*]CCO[*]", "[*]N[*]"])
    wanted = [[3.0, 1.0], [1.5, 1.0], [np.nan, 0.0], [np.nan, np.nan]]
    assert np.array_equal(found, np.array(wanted, dtype=np.float32), equal_nan=True)


def test_infinity_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("smiles,a,b\n*CC*,inf,1e39\n")
    assert np.isnan(read(file).of(["[*]CC[*]"])).all()


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("smiles,a,b\n*CC*,1,x\n[*]CC[*],2,3\n,4,5\n*CCO*,1,n/a\n*CCO*,1,\n")
    with pytest.raises(TableError) as caught:
        read(file)
    message = str(caught.value)
    assert "1 column not of numbers: 'b'" in message
    assert "'b' in row 0" in message
    assert "row 2: without a key" in message
    assert "1 string with several values, e.g. [*]CC[*]" in message
    assert "[*]CCO[*]" not in message  # twice, and alike


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SMILES,a\n*CC*,1\n", "key 'smiles' is missing; did you mean 'SMILES'"),
        ("smiles\n*CC*\n", "no column beside the key"),
        ("smiles,a,a\n*CC*,1,2\n", "appear more than once: a"),
        ("smiles,a\n*CC*,1,2\n", "row 0: too many or too few cells"),
    ],
)
def test_a_table_of_other_columns_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text)
    with pytest.raises(TableError, match=message):
        read(file)


def test_a_missing_table_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no table .*features.table of data.strings 'p'"):
        read(tmp_path / "none.csv")


def test_strings_that_it_lacks_are_unreadable_but_for_that_of_a_null(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("smiles,a\n*CC*,1\nCCO,2\n")
    tables, column = tables_of(file, if_null="")
    reasons = tables.unreadable(column, ["[*]CC[*]", "[*]N[*]", ""])
    assert list(reasons) == ["[*]N[*]"]
    assert "own.csv; 1 key of it are not of kind psmiles, e.g. 'CCO' has no" in reasons["[*]N[*]"]
