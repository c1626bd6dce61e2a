"""What varies within a patient may be chosen, and is written as the run reads it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embedcache.errors import ConfigError, DesignError, TableError
from fusionnet.config.design import DesignConfig
from fusionnet.design.deriving import from_rows, patients, read_rows
from fusionnet.design.space import FormulationSpace
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.vectors import vectors_of_all_strings

CHOICES = ("scar", "border", "all_over")


@pytest.fixture(scope="module")
def model(designable: Path) -> RewardModel:
    return RewardModel.load(designable)


@pytest.fixture(scope="module")
def table(model: RewardModel) -> pl.DataFrame:
    return pl.read_parquet(model.run.data.files[0])


@pytest.fixture(scope="module")
def space(model: RewardModel) -> FormulationSpace:
    return from_rows(model.run, read_rows(model.run))


@pytest.fixture(scope="module")
def contexts(model: RewardModel, space: FormulationSpace) -> pl.DataFrame:
    return patients(space, read_rows(model.run))


def designed(run: TrainedRun, **design: object) -> TrainedRun:
    return replace(run, design=DesignConfig.model_validate(design))


def test_what_varies_within_a_patient_may_be_chosen(
    space: FormulationSpace, table: pl.DataFrame
) -> None:
    assert space.variables == ("x1", "x2", "dose")
    assert space.choices == (CHOICES,)
    assert space.fixed == ("x0", "age", "sex")
    assert space.group == "patient"
    assert space.logarithmic == (False, True, False)
    assert space.whole == (False, False, True)
    wanted = table.group_by("smiles", "other", "kind").agg(
        low=pl.col("x2").cast(pl.Float32).min(), high=pl.col("x2").cast(pl.Float32).max()
    )
    found = pl.DataFrame(
        {
            "smiles": space.texts["polymer"],
            "other": space.texts["partner"],
            "kind": space.categories["kind"],
            "low": space.low[:, 1].astype(np.float32),
            "high": space.high[:, 1].astype(np.float32),
        }
    )
    keys = ["smiles", "other", "kind"]
    assert found.sort(keys).equals(wanted.select(found.columns).sort(keys))


def test_inputs_are_those_of_the_frame(
    model: RewardModel, space: FormulationSpace, contexts: pl.DataFrame
) -> None:
    designs = space.draw(np.random.default_rng(0), 257)
    for given in (contexts[1:2], contexts.sample(257, with_replacement=True, seed=0)):
        vectors, wanted = model.inputs(space.frame(given, *designs))
        found = space.inputs(space.context(given), *designs)
        torch.testing.assert_close(found.numeric, wanted.numeric, rtol=0, atol=0, equal_nan=True)
        assert found.numeric[:, space.columns.features.index("age")].isnan().any()
        assert torch.equal(found.category, wanted.category)
        for c, (name, texts) in enumerate(space.distinct.items()):
            own = vectors_of_all_strings(model.run, name, texts)
            assert torch.equal(own[found.string_id[:, c]], vectors[c][wanted.string_id[:, c]])


def test_drawn_designs_are_inside_and_the_same_for_a_seed(
    model: RewardModel, space: FormulationSpace, contexts: pl.DataFrame
) -> None:
    designs = space.draw(np.random.default_rng(5), 2_000)
    space.check(designs)
    assert all(map(np.array_equal, designs, space.draw(np.random.default_rng(5), 2_000)))
    dose = designs.values[:, 2]
    assert (dose == dose.round()).all()
    assert len(set(designs.material)) == space.num_materials
    assert not model.predict(space.frame(contexts[:1], *designs))["known"].is_null().any()


def test_shares_are_where_values_lie_between_their_bounds(space: FormulationSpace) -> None:
    material = np.arange(space.num_materials)
    share = np.random.default_rng(1).random((space.num_materials, 3))
    found = space.shares_of(material, space.values_at(material, share))
    bounded = (space.high > space.low)[:, :2]
    np.testing.assert_allclose(found[:, :2][bounded], share[:, :2][bounded], atol=1e-9)
    np.testing.assert_allclose(space.values_at(material, np.zeros_like(share)), space.low)
    middle = space.values_at(material, np.full_like(share, 0.5))[:, 1]
    np.testing.assert_allclose(middle, np.sqrt(space.low[:, 1] * space.high[:, 1]))


def test_whole_numbers_have_equal_shares_of_the_way(space: FormulationSpace) -> None:
    material = int((space.high - space.low)[:, 2].argmax())
    low, high = space.low[material, 2], space.high[material, 2]
    num_values = int(high - low + 1)
    share = np.repeat((np.arange(100 * num_values) + 0.5)[:, None] / (100 * num_values), 3, 1)
    found = space.values_at(np.full(len(share), material), share)[:, 2]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == list(range(int(low), int(high) + 1))
    assert set(counts.tolist()) == {100}


def test_the_space_survives_json(space: FormulationSpace) -> None:
    again = FormulationSpace.from_json(space.to_json())
    assert again.to_json() == space.to_json()
    assert np.array_equal(again.low, space.low)
    assert again.columns == space.columns


@pytest.mark.parametrize(
    "change",
    [
        ('"whole":[false', '"hole":[false'),
        ('"variables":["x1"', '"variables":["x9"'),
        ('"logarithmic":[false', '"logarithmic":[true,false'),
        ('"low":[[', '"low":[[1e9,'),
        ('"choices":[["scar",', '"choices":[['),
        ("{", "["),
    ],
)
def test_json_that_is_no_space_is_refused(space: FormulationSpace, change: tuple[str, str]) -> None:
    text = space.to_json()
    assert change[0] in text
    with pytest.raises(DesignError, match="no space of designs"):
        FormulationSpace.from_json(text.replace(*change, 1))


def test_patients_are_the_groups_with_what_is_theirs(
    contexts: pl.DataFrame, table: pl.DataFrame
) -> None:
    wanted = table.group_by("patient").agg(pl.col("x0", "age", "sex").first()).sort("patient")
    casts = [pl.col("x0", "age").cast(pl.Float32)]
    assert contexts.equals(wanted.with_columns(casts), null_equal=True)


def test_bounds_narrow_and_leave_out_what_cannot_be_within(
    model: RewardModel, space: FormulationSpace
) -> None:
    rows = read_rows(model.run)
    cut = float(np.median(space.low[:, 0]))
    low = float(space.low[:, 0].min())
    found = from_rows(designed(model.run, bounds={"x1": [low, cut], "dose": [1.5, 4.5]}), rows)
    assert found.high[:, 0].max() <= cut
    assert set(found.high[:, 2]) <= {2.0, 3.0, 4.0}
    assert found.num_left_out == space.num_materials - found.num_materials > 0


def test_a_held_variable_has_its_value(model: RewardModel) -> None:
    run = designed(model.run, variables=["x1", "x2", "dose"], bounds={"dose": [3, 3]})
    found = from_rows(run, read_rows(run))
    designs = found.draw(np.random.default_rng(0), 100)
    assert set(designs.values[:, 2]) == {3.0}


@pytest.mark.parametrize(
    ("design", "error", "message"),
    [
        ({"variables": ["x9"]}, ConfigError, "design.variables names 'x9', which is no column"),
        ({"variables": ["x1"]}, DesignError, "x2, dose vary within a patient"),
        ({"bounds": {"x0": [0, 1]}}, ConfigError, "'x0', which is not among what may be chosen"),
        ({"bounds": {"x1": [-5, 60]}}, ConfigError, "the table's values"),
        ({"choices": [["scar", "border"]]}, ConfigError, "exactly one is to be 1"),
        ({"choices": [["scar", "dose"]]}, ConfigError, "exactly one is to be 1"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(
    model: RewardModel, design: dict[str, object], error: type[Exception], message: str
) -> None:
    run = designed(model.run, **design)
    with pytest.raises(error, match=message):
        from_rows(run, read_rows(run))


def test_without_groups_a_row_is_the_context(model: RewardModel, table: pl.DataFrame) -> None:
    run = replace(model.run, data=model.run.data.model_copy(update={"group": None}))
    found = from_rows(run, read_rows(run))
    assert found.variables == ()
    assert found.choices == ()
    assert not found.categories
    assert found.num_materials == table.select("smiles", "other").n_unique()
    contexts = patients(found, read_rows(run))
    assert contexts.height == table.height
    assert contexts.columns[0] == "row"
    one = table.head(40).with_columns(smiles=pl.lit("[*]CC[*]"), other=pl.lit("[*]CC[*]"))
    with pytest.raises(DesignError, match="nothing can be chosen"):
        from_rows(run, read_rows(run, one))


def test_a_patient_with_two_values_is_refused(
    model: RewardModel, space: FormulationSpace, table: pl.DataFrame
) -> None:
    two = table.with_columns(x0=pl.col("x0") + pl.col("dose"))
    with pytest.raises(DesignError, match=r"'x0' has \d values in patient 'P00'"):
        patients(space, read_rows(model.run, two))


def test_what_lies_outside_is_refused(space: FormulationSpace, contexts: pl.DataFrame) -> None:
    good = space.draw(np.random.default_rng(0), 3)
    far = good.values + 1e6
    wrong = [
        (good._replace(values=far), "is not between"),
        (good._replace(values=good.values * np.nan), "is not between"),
        (good._replace(material=good.material + 1_000), "is of material"),
        (good._replace(choice=good.choice + 3), "chooses column"),
    ]
    for designs, message in wrong:
        with pytest.raises(DesignError, match=message):
            space.frame(contexts[:1], *designs)
    given = [
        (contexts[:2], "2 rows for 3 designs"),
        (contexts[:1].drop("x0"), "lacks column 'x0'"),
        (contexts[:1].with_columns(x0=None), "'x0' has no value in row 0"),
        (contexts[:1].with_columns(x0=float("inf")), "is infinite in row 0"),
        (contexts[:1].with_columns(sex=pl.lit("d")), "none of the run's f, m"),
        (contexts[:1].with_columns(x0=pl.lit("1")), "expected numbers"),
    ]
    for context, message in given:
        with pytest.raises(DesignError, match=message):
            space.frame(context, *good)


def test_a_table_that_is_gone_or_broken_is_told(model: RewardModel, table: pl.DataFrame) -> None:
    data = model.run.data
    gone = replace(model.run, data=data.model_copy(update={"path": "gone.parquet"}))
    with pytest.raises(DesignError, match="--table"):
        read_rows(gone)
    with pytest.raises(TableError, match="group column 'patient' is missing"):
        read_rows(model.run, table.drop("patient"))
    with pytest.raises(TableError, match=r"x1.*null or NaN"):
        read_rows(model.run, table.with_columns(x1=float("nan")))
    with pytest.raises(DesignError, match="no rows"):
        from_rows(model.run, read_rows(model.run, table.head(0)))


def test_a_design_may_be_edited_after_training(designable: Path, tmp_path: Path) -> None:
    text = (designable / "tiny_config.yaml").read_text()
    assert load_run(designable).design == DesignConfig()
    for file in designable.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    config = tmp_path / "tiny_config.yaml"
    config.unlink()
    config.write_text(text.replace("bounds: {}", "bounds: {x1: [40, 60]}"))
    assert load_run(tmp_path).design.bounds == {"x1": (40, 60)}
    config.write_text(text.replace("bounds: {}", "bounds: {x1: [60, 40]}"))
    with pytest.raises(ConfigError, match="low must not be above high"):
        load_run(tmp_path)
