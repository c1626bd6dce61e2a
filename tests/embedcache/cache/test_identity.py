"""Identity: it changes with everything that the cache's content depends on, says what changed, and
with nothing else.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embedcache.build.identity import wanted_identity
from embedcache.cache.identity import Identity
from embedcache.encoder.loading import encoding_key
from embedcache.encoder.standin import write_standin
from embedcache.errors import TableError
from embedcache.files import file_digest


def identity_of(study: Any, **kwargs: Any) -> Identity:
    return wanted_identity(study.data, study.targets, study.split, study.encoder, **kwargs)


@pytest.fixture
def study(make_study: Callable, tmp_path: Path) -> Any:
    return make_study(tmp_path)


CHANGES = [
    ({"split": {"seed": 1}}, ["split.seed: 0 -> 1"]),
    ({"encoder": {"pooling": "cls"}}, ["encoder.pooling: mean -> cls"]),
    (
        {"numeric": [{"column": "x", "unit": "cm"}, {"column": "y"}]},
        ["data.numeric: x, y, t, flag, same -> x, y", "data.numeric[x].unit: mm -> cm"],
    ),
    ({"report_by": ["site"]}, ['data.report_by: ["real", "site"] -> ["site"]']),
    ({"group": "site"}, ["data.group: patient -> site"]),
    (
        {"row_weight": None},
        ["data.row_weight: (none) -> null", "data.row_weight.weight: 5.0 -> (none)"],
    ),
]


@pytest.mark.parametrize(("change", "lines"), CHANGES, ids=lambda value: str(value)[:25])
def test_a_change_is_named(study: Any, change: dict[str, Any], lines: list[str]) -> None:
    before, after = identity_of(study), identity_of(study.but(**change))
    assert before != after
    assert before.short != after.short
    difference = before.difference(after)
    for line in lines:
        assert line in difference


def test_an_item_that_one_side_lacks_is_one_line_not_one_per_field(study: Any) -> None:
    fewer = study.but(numeric=[column.model_dump() for column in study.data.numeric[:-1]])
    assert identity_of(study).difference(identity_of(fewer)) == [
        "data.numeric: x, y, t, flag, same -> x, y, t, flag"
    ]


def test_nothing_differs_from_itself(study: Any) -> None:
    assert identity_of(study) == identity_of(study)
    assert identity_of(study).difference(identity_of(study)) == []


def test_an_edited_table_is_another_and_a_moved_one_is_not(study: Any, tmp_path: Path) -> None:
    before = identity_of(study)
    moved = tmp_path / "elsewhere.parquet"
    Path(study.data.path).rename(moved)
    assert identity_of(study.but(path=str(moved))) == before
    pl.read_parquet(moved).with_columns(pl.col("x") + 1e-6).write_parquet(moved)
    (line,) = before.difference(identity_of(study.but(path=str(moved))))
    assert line.startswith("table: sha256 ")
    assert line.count("..") == 2


def test_another_encoder_is_another_whatever_its_folder_is_called(
    study: Any, tmp_path: Path
) -> None:
    folder, copy = tmp_path / "other", tmp_path / "copy"
    write_standin(folder, "tiny", seed=1)
    write_standin(copy, "tiny", seed=0)
    before = identity_of(study)
    (line,) = before.difference(identity_of(study.but(encoder={"source": str(folder)})))
    assert line.startswith("encoder.weights: ")
    assert identity_of(study.but(encoder={"source": str(copy)})) == before


@pytest.mark.parametrize("change", [{"mode": "frozen"}, {"lora": {"r": 4}}])
def test_how_a_run_trains_is_no_part_of_it(study: Any, change: dict[str, Any]) -> None:
    changed = study.but(encoder=change)
    assert identity_of(changed) == identity_of(study)
    assert encoding_key(changed.encoder) == encoding_key(study.encoder)
    assert encoding_key(study.but(encoder={"pooling": "cls"}).encoder) != encoding_key(
        study.encoder
    )


def test_a_columns_own_encoder_is_named_with_the_column(study: Any) -> None:
    own = study.but(
        strings=[
            {
                "name": "polymer",
                "column": "smiles",
                "encoder": {"source": study.encoder.source, "pooling": "cls"},
            }
        ]
    )
    other = study.but(
        strings=[
            {"name": "polymer", "column": "smiles", "encoder": {"source": study.encoder.source}}
        ]
    )
    assert identity_of(own).difference(identity_of(other)) == [
        "data.strings[polymer].encoder.pooling: cls -> mean"
    ]


def test_json_round_trip(study: Any) -> None:
    identity = identity_of(study)
    found = Identity(json.loads(json.dumps(dict(identity.entries))))
    assert found == identity
    assert found.short == identity.short


def test_a_missing_table_needs_its_known_digest(study: Any) -> None:
    identity = identity_of(study)
    Path(study.data.path).unlink()
    with pytest.raises(TableError, match="there is no table"):
        identity_of(study)
    assert identity_of(study, known_files=identity.files) == identity


def test_a_table_that_is_there_is_hashed_whatever_is_known(study: Any) -> None:
    assert identity_of(study, known_files=("sha256 0",)) == identity_of(study)


def test_a_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, B.1
    assert (
        file_digest(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
