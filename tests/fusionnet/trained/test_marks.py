"""What is said of predictions: rows that training never saw, that lie outside of its rows, or that
break a rule; and frames of every kind come back as they were.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from embedcache.config.table import DataConfig
from embedcache.errors import EncoderError, TableError
from embedcache.schema import parse_config
from fusionnet.config.reward import RewardConfig, RewardTerm
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import load_run

MARKS = ["known", "outside", "reason"]
PREDICTED = ["predicted_outcome", "predicted_good", "predicted_gappy"]


@pytest.fixture(scope="module")
def model(made_run: Path) -> RewardModel:
    return RewardModel(load_run(made_run))


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet").head(40)


def reading(model: RewardModel, **changes: Any) -> RewardModel:
    """Return the model with other rules for what it reads."""
    values = {**model.run.data.model_dump(), **changes}
    return RewardModel(replace(model.run, data=parse_config(DataConfig, values, "test")))


def rewarding(model: RewardModel) -> RewardModel:
    terms = RewardConfig(terms=(RewardTerm(task="ef", weight=1.0),))
    return RewardModel(replace(model.run, reward=terms))


def with_row(frame: pl.DataFrame, row: int, **cells: Any) -> pl.DataFrame:
    here = pl.int_range(pl.len()) == row
    return frame.with_columns(
        pl.when(here).then(pl.lit(value, dtype=frame.schema[name])).otherwise(name).alias(name)
        for name, value in cells.items()
    )


def test_rows_like_those_of_training_are_known_and_inside(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    low, high = model.run.scaling.low, model.run.scaling.high
    stored = [pl.col(f"x{k}").cast(pl.Float32) for k in range(3)]
    inside = pl.all_horizontal(each.is_between(low[k], high[k]) for k, each in enumerate(stored))
    rows = frame.filter(inside)
    assert 30 < rows.height < 40
    found = model.predict(rows)
    assert found.columns == [*PREDICTED, *MARKS]
    assert found["known"].all()
    assert not found["outside"].any()
    assert found["reason"].null_count() == rows.height
    others = model.predict(frame.filter(~inside))
    assert others["outside"].all()
    assert others["reason"].str.contains("is outside of the train rows' ").all()


def test_what_training_never_saw_is_marked_row_by_row(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    new = with_row(frame, 3, smiles="[*]CCCC[*]")
    new = with_row(with_row(new, 5, x0=1e6), 7, smiles="[*]CCCC[*]", x2=1e6)
    found = model.predict(new)
    assert found.filter(~pl.col("known"))["predicted_outcome"].is_finite().all()
    assert [row for row in (3, 5, 7) if not found["known"][row]] == [3, 7]
    assert [row for row in (3, 5, 7) if found["outside"][row]] == [5, 7]
    assert found["reason"][3] == "the run was not trained on this polymer string"
    assert found["reason"][5].startswith("x0 is outside of the train rows' ")
    assert "not trained on this polymer string; x2 is outside" in found["reason"][7]
    before = model.predict(frame)
    rest = ~pl.int_range(pl.len()).is_in([3, 5, 7])
    assert_frame_equal(found.filter(rest), before.filter(rest), rel_tol=1e-4)


@pytest.mark.parametrize("kind", ["polars", "lazy", "parquet", "csv"])
def test_rows_that_break_a_rule_are_null_where_that_is_asked_for(
    kind: str, model: RewardModel, frame: pl.DataFrame, tmp_path: Path
) -> None:
    broken = with_row(frame, 0, smiles="CCO")
    broken = with_row(with_row(broken, 1, x0=None, kind="z"), 39, x1=500.0)
    given: Any = {"polars": broken, "lazy": broken.lazy()}.get(kind, tmp_path / f"t.{kind}")
    if kind == "parquet":
        broken.write_parquet(given)
    if kind == "csv":
        broken.write_csv(given)
    with pytest.raises(TableError, match=r"(?s)CCO.*unknown category 'z'"):
        model.predict(given)
    with pytest.raises(TableError, match="'x1': above 100"):
        rewarding(reading(model, on_invalid="skip")).reward(given)
    for found in (
        model.predict(given, on_invalid="skip"),
        reading(model, on_invalid="skip").predict(given),
    ):
        assert found.height == 40
        is_null = found.select(pl.all_horizontal(pl.col(*PREDICTED, "known").is_null()))
        assert [row for row, (null,) in enumerate(is_null.rows()) if null] == [0, 1, 39]
        assert found["predicted_outcome"].null_count() == 3
        assert (
            "string column 'smiles': it is not a psmiles: it has no endpoint" in found["reason"][0]
        )
        assert "numeric column 'x0': null or NaN; category column 'kind': 'z'" in found["reason"][1]
        assert "numeric column 'x1': above 100" in found["reason"][39]
        wanted = model.predict(frame)
        assert_frame_equal(found[2:39], wanted[2:39], rel_tol=1e-4)


def test_a_frame_of_broken_rows_alone_is_null(model: RewardModel, frame: pl.DataFrame) -> None:
    found = model.predict(frame.with_columns(smiles=pl.lit("CCO")), on_invalid="skip")
    assert found.select(pl.col(PREDICTED).null_count()).row(0) == (40, 40, 40)
    with pytest.raises(TableError, match="'x0' is missing"):
        model.predict(frame.drop("x0"), on_invalid="skip")


def test_unknown_categories_are_predicted_as_other_and_marked(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    lenient = reading(model, categories=[{"column": "kind", "other": "b", "if_null": "c"}])
    new = with_row(with_row(frame, 4, kind="z"), 6, kind=None)
    found = lenient.predict(new)
    wanted = model.predict(with_row(with_row(frame, 4, kind="b"), 6, kind="c"))
    assert_frame_equal(found.select(PREDICTED), wanted.select(PREDICTED))
    assert [row for row, known in enumerate(found["known"]) if not known] == [4]
    assert "kind has a category that the run does not know" in found["reason"][4]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_missing_numbers_are_filled_as_in_training(
    value: float | None, model: RewardModel, frame: pl.DataFrame
) -> None:
    new = with_row(frame, 4, x0=value)
    numeric = [column.model_dump() for column in model.run.data.numeric]
    constant = reading(model, numeric=[{**numeric[0], "if_null": 0.25}, *numeric[1:]])
    statistic = reading(model, numeric=[{**numeric[0], "if_null": "mean"}, *numeric[1:]])
    scaling = replace(model.run.scaling, fill=(0.25, None, None))
    statistic = RewardModel(replace(statistic.run, scaling=scaling))
    wanted = model.predict(with_row(frame, 4, x0=0.25))
    for each in (constant, statistic):
        assert_frame_equal(each.predict(new), wanted, rel_tol=1e-5)


def test_a_column_without_any_value_is_filled_as_one_with_gaps(
    model: RewardModel, frame: pl.DataFrame, tmp_path: Path
) -> None:
    # of such a column polars knows no type; a CSV's cells are empty
    numeric = [column.model_dump() for column in model.run.data.numeric]
    lenient = reading(
        model,
        numeric=[{**numeric[0], "if_null": 0.25}, *numeric[1:]],
        categories=[{"column": "kind", "if_null": "c"}],
    )
    gone = frame.with_columns(x0=pl.lit(None), kind=pl.lit(None))
    gone.write_csv(tmp_path / "t.csv")
    wanted = model.predict(frame.with_columns(x0=pl.lit(0.25), kind=pl.lit("c")))
    for each in (gone, gone.lazy(), tmp_path / "t.csv"):
        assert_frame_equal(lenient.predict(each), wanted, rel_tol=1e-4)


@pytest.mark.parametrize("file", ["t.parquet", "t.csv", None])
def test_an_empty_frame_has_empty_predictions(
    file: str | None, model: RewardModel, frame: pl.DataFrame, tmp_path: Path
) -> None:
    given: Any = frame.head(0)
    if file is not None:
        given = tmp_path / file
        frame.head(0).write_csv(given) if file.endswith("csv") else frame.head(0).write_parquet(
            given
        )
    for found in (model.predict(given), model.predict(given, on_invalid="skip")):
        assert (found.height, found.columns) == (0, [*PREDICTED, *MARKS])
    assert [str(each) for each in found.dtypes[3:]] == ["Boolean", "Boolean", "String"]
    assert rewarding(model).reward(given).shape == (0,)
    with pytest.raises(TableError, match="'x0' is missing"):
        model.predict(frame.head(0).drop("x0"))


def test_a_pandas_frame_comes_back_as_one_with_its_index(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; it is no dependency")
    table = pandas.DataFrame({name: frame[name].to_list() for name in frame.columns})
    table.index = [f"row {k}" for k in range(40)]
    table.loc["row 2", "smiles"] = "CCO"
    found = model.predict(table, on_invalid="skip")
    assert isinstance(found, pandas.DataFrame)
    assert found.index.equals(table.index)
    wanted = model.predict(with_row(frame, 2, smiles="CCO"), on_invalid="skip")
    np.testing.assert_allclose(
        found["predicted_outcome"].to_numpy(), wanted["predicted_outcome"].to_numpy(), rtol=1e-4
    )
    assert found["reason"]["row 2"] == wanted["reason"][2]
    empty = model.predict(table.head(0))
    assert isinstance(empty, pandas.DataFrame)
    assert len(empty) == 0


def test_the_same_table_gives_the_same_categories_whatever_reads_it(
    model: RewardModel, frame: pl.DataFrame, tmp_path: Path
) -> None:
    padded = frame.with_columns(kind=pl.col("kind") + " ", smiles=" " + pl.col("smiles"))
    padded.write_csv(tmp_path / "t.csv")
    wanted = model.predict(frame)
    for each in (
        padded,
        padded.with_columns(pl.col("kind").cast(pl.Categorical)),
        tmp_path / "t.csv",
    ):
        assert_frame_equal(model.predict(each), wanted, rel_tol=1e-4)


def test_strings_that_the_encoder_cannot_read_are_null_too(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    new = with_row(with_row(frame, 2, smiles=f"[*]{'C' * 5000}[*]"), 3, smiles="[*]CCCCC[*]")
    with pytest.raises(EncoderError, match="longer than the encoder's"):
        model.predict(new)
    found = model.predict(new, on_invalid="skip")
    assert found["predicted_outcome"].null_count() == 1
    assert "it is longer than its encoder's 512 positions" in found["reason"][2]
    assert found["known"].to_list()[2:5] == [None, False, True]


def test_strings_and_categories_of_no_train_row_are_unknown(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    """Validation and test rows had them, and they have vectors in the run."""
    texts = list(model.run.strings["polymer"])
    ((_, kinds),) = model.run.layout.categories
    scaling = replace(
        model.run.scaling,
        untrained_strings={"polymer": (2,)},
        untrained_categories={"kind": (kinds.index("b"),)},
    )
    blind = rewarding(RewardModel(replace(model.run, scaling=scaling)))
    assert model.predict(frame)["known"].all()
    found = blind.predict(frame)
    of_string, of_kind = frame["smiles"] == texts[2], frame["kind"] == "b"
    assert found["known"].to_list() == (~(of_string | of_kind)).to_list()
    assert 0 < found["known"].sum() < frame.height
    both = found.filter(of_string & of_kind)["reason"]
    wanted = "the run was not trained on this polymer string; the run was not trained on this kind"
    assert both.str.starts_with(wanted).all()
    assert len(both)
    table = {name: list(model.run.strings[name]) for name in ("polymer", "partner")}
    vectors_of, inputs = blind.on_strings(table), blind.inputs(frame)[1]
    assert blind.rewards(frame).known.tolist() == found["known"].to_list()
    ids = [texts.index(text) for text in frame["smiles"]]
    partner = [table["partner"].index(text) for text in frame["other"]]
    own = replace(inputs, string_id=torch.tensor([ids, partner]).T)
    assert vectors_of(own).known.tolist() == found["known"].to_list()
    with pytest.raises(TableError, match=r"is none of the strings that the run was trained on"):
        blind.rewards(frame, unseen="refuse")
