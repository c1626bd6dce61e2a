"""`FusionModel`: a fit is the run that the commands would make, and goes on being one."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from shared_fixtures import TINY_STRINGS

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError, OutputError, RunError, SplitError, TableError
from fusionnet import FusionModel, RewardModel
from fusionnet.estimators.described import Description, described
from fusionnet.estimators.workfolder import TABLE
from fusionnet.experiment import load_experiment
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.drafting import MOST_TUNED, ROWS_FOR_BINS
from fusionnet.workflow.training import train_experiment

SMALL: dict[str, Any] = {
    "blend": {"boosting": False},
    "model": {
        "adapter_hidden": 16,
        "adapter_width": 16,
        "numeric_hidden": 8,
        "numeric_width": 8,
        "fusion_width": 32,
        "num_layers": 1,
        "num_heads": 4,
        "feedforward": 32,
    },
    "train": {"epochs": 2, "batch_rows": 32, "prove": 0, "cpu_threads": 1},
    "optim": {"warmup_epochs": 0},
}


def table(num_rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    string, x = rng.integers(0, 4, num_rows), rng.normal(size=num_rows)
    return pd.DataFrame(
        {
            "smiles": [TINY_STRINGS[number] for number in string],
            "x": x,
            "solvent": rng.choice(["water", "THF"], num_rows),
            "tg": 300 + 20 * string + 10 * x,
        },
        index=[f"r{7 * row}" for row in range(num_rows)],
    )


def in_polars(frame: pd.DataFrame) -> pl.DataFrame:
    return pl.DataFrame({name: frame[name].to_numpy() for name in frame.columns})


@pytest.fixture(scope="module")
def keys(tiny_encoder_folder: Path) -> dict[str, Any]:
    return {**SMALL, "encoder": {"source": str(tiny_encoder_folder)}}


@pytest.fixture(scope="module")
def fitted(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FusionModel:
    folder = tmp_path_factory.mktemp("fitted") / "work"
    model = FusionModel(strings="smiles", target="tg", folder=folder, verbose=False, **keys)
    assert model.fit(table()) is model
    return model


def test_predictions_are_of_the_frames_own_kind_and_those_of_the_run(fitted: FusionModel) -> None:
    rows = table().iloc[5:9]
    found = fitted.predict(rows)
    assert isinstance(found, pd.DataFrame)
    assert list(found.index) == list(rows.index)
    other = fitted.predict(in_polars(rows))
    assert isinstance(other, pl.DataFrame)
    assert other["predicted_tg"].to_list() == found["predicted_tg"].to_list()
    run = RewardModel.load(fitted.folder)
    assert run.predict(in_polars(rows)).equals(other)


@pytest.mark.slow
def test_it_is_the_run_that_the_commands_make_of_its_config(
    fitted: FusionModel, tmp_path: Path
) -> None:
    work = fitted.folder.parent
    overrides = [f"cache.path={tmp_path / 'c.zarr'}", f"run.dir={tmp_path / 'run'}"]
    experiment = load_experiment(work / "config.yaml", overrides)
    build_experiment(experiment)
    train_experiment(experiment, "config.yaml", verbose=False)
    same = RewardModel.load(tmp_path / "run").predict(in_polars(table()))
    assert same.equals(fitted.predict(in_polars(table())))
    assert open_cache(work / "cache.zarr").layout.num_rows == 200


@pytest.mark.slow
def test_a_saved_model_and_a_copy_of_it_predict_the_same(
    fitted: FusionModel, tmp_path: Path
) -> None:
    rows = in_polars(table())
    wanted = fitted.predict(rows)
    saved = fitted.save(tmp_path / "saved")
    for same in (
        FusionModel.load(saved),
        FusionModel.load(fitted.folder.parent),
        FusionModel.load(str(fitted.folder)),
        copy.deepcopy(fitted),
        pickle.loads(pickle.dumps(fitted)),
    ):
        assert same.predict(rows).equals(wanted)
        assert same.experiment == fitted.experiment
    with pytest.raises(OutputError, match="is there already"):
        fitted.save(saved)


def test_it_is_measured_on_rows_that_did_not_train(fitted: FusionModel) -> None:
    own = fitted.evaluate()
    assert set(own) == {"tg"}
    assert own["tg"].keys() >= {"mae", "r2", "spearman"}
    assert fitted.evaluate(in_polars(table())) == own  # of the same table, the same test rows
    assert fitted.score() == own["tg"]["r2"]
    new = table(300).iloc[200:]
    rows = in_polars(new)
    error = (fitted.predict(rows)["predicted_tg"] - rows["tg"]).abs().mean()
    assert fitted.evaluate(new)["tg"]["mae"] == pytest.approx(error, rel=1e-4)
    assert fitted.evaluate(split="validation") != own
    with pytest.raises(ConfigError, match="no target has classes"):
        fitted.predict_proba(new)


@pytest.mark.slow
def test_classes_are_predicted_with_their_probabilities(keys: dict[str, Any]) -> None:
    frame = table()
    frame["phase"] = np.array(["glass", "melt", "rubber"])[np.digitize(frame["tg"], [320, 345])]
    frame["wet"] = np.where(frame["solvent"] == "water", "yes", "no")
    model = FusionModel(target=["phase", "wet"], ignore="tg", verbose=False, **keys).fit(frame)
    kinds = {task.column: (task.kind, task.classes) for task in model.model.run.tasks}
    assert kinds["phase"] == ("multiclass", ("glass", "melt", "rubber"))
    assert kinds["wet"] == ("binary", ("no", "yes"))
    found = model.predict_proba(frame)
    assert list(found.index) == list(frame.index)
    assert np.allclose(found.filter(like="_phase_").sum(axis=1), 1, atol=1e-5)
    assert np.allclose(found["probability_wet_no"] + found["probability_wet_yes"], 1)
    chosen = found.filter(like="_phase_").to_numpy().argmax(1)
    assert (model.predict(frame)["predicted_phase"] == np.take(kinds["phase"][1], chosen)).all()
    assert 0 <= model.score() <= 1
    assert "accuracy" in repr(model) or "AUROC" in repr(model)


def test_what_it_is_is_said(fitted: FusionModel, keys: dict[str, Any]) -> None:
    new = FusionModel(strings="smiles", target="tg", **keys)
    assert repr(new) == "FusionModel(strings='smiles', target='tg'), not fitted"
    shown = repr(fitted)
    for words in ("predicts tg", "smiles (4 strings), x, solvent (2 categories)", "MAE", "of 2"):
        assert words in shown
    with pytest.raises(RunError, match=r"call fit\(frame\) first"):
        new.predict(table())


def test_a_folder_that_holds_a_fit_is_left_alone_or_gone_on_with(
    fitted: FusionModel, keys: dict[str, Any]
) -> None:
    again = FusionModel("smiles", "tg", folder=fitted.folder.parent, verbose=False, **keys)
    with pytest.raises(RunError, match="resume=True"):
        again.fit(table())
    with pytest.raises(RunError, match="choose one"):
        again.fit(table(), resume=True, overwrite=True)
    kept = fitted.folder.parent / TABLE
    before = kept.read_bytes()
    with pytest.raises(TableError, match="not the one that"):
        again.fit(table().head(30), resume=True)
    assert kept.read_bytes() == before
    assert sorted(path.name for path in kept.parent.glob("*partial*")) == []
    rows = in_polars(table())
    assert again.fit(table(), resume=True).predict(rows).equals(fitted.predict(rows))


@pytest.mark.slow
def test_a_fit_may_replace_an_earlier_one_and_a_path_is_a_frame(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "t.csv"
    table().to_csv(file)
    model = FusionModel("smiles", "tg", folder=tmp_path / "work", verbose=False, **keys)
    first = model.fit(file).predict(file)
    assert not (tmp_path / "work" / TABLE).exists()
    other = table()
    other["tg"] += 100
    second = model.fit(other, overwrite=True).predict(file)
    assert second["predicted_tg"].mean() > first["predicted_tg"].mean() + 50


@pytest.mark.slow
def test_the_folder_of_a_fit_without_a_name_goes_with_the_model(
    keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    class Seeing:
        def on_epoch_end(self, record: dict[str, Any]) -> bool:
            seen.append(record["epoch"])
            return True

    model = FusionModel(target={"column": "tg", "unit": "K"}, **keys)
    model.fit(table(), callbacks=[Seeing()])
    told = capsys.readouterr()
    assert "4 distinct values are PSMILES" in told.out
    assert "DeepSpeed" not in told.out + told.err
    assert seen == [1]
    assert "MAE" in repr(model)
    assert " K" in repr(model)
    folder = model.folder
    assert folder.exists()
    del model
    assert not folder.exists()


def test_a_config_that_names_the_features_is_not_added_to(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: {numeric: [{column: x, low: -9}]}\ntrain: {epochs: 1}\n")
    model = FusionModel(config=config, target="tg", verbose=False, **keys).fit(table())
    data = model.experiment.data
    assert [column.column for column in data.numeric] == ["x"]
    assert data.numeric[0].low == -9
    assert not data.strings
    assert not data.categories
    assert model.experiment.train.epochs == 2  # what is given by name wins


@pytest.mark.parametrize(
    ("num_rows", "numeric", "form"),
    [(ROWS_FOR_BINS, None, "ple"), (ROWS_FOR_BINS - 1, None, "linear"), (2000, [], "linear")],
)
def test_numbers_of_larger_tables_have_bins(
    keys: dict[str, Any], tmp_path: Path, num_rows: int, numeric: list[str] | None, form: str
) -> None:
    said = Description("smiles", numeric, None, "tg", None, (), keys)
    file = tmp_path / "table.csv"
    table(num_rows).to_csv(file, index=False)
    experiment, _ = described(file, tmp_path, said)
    assert (experiment.model.fusion, experiment.model.numeric) == ("mlp", form)


@pytest.mark.parametrize(
    ("encoder", "mode"),
    [
        ({}, "frozen"),
        ({"lora": {"r": 4}}, "per_step"),
        ({"mode": "frozen", "lora": {"r": 4}}, "frozen"),
    ],
)
def test_many_strings_are_frozen_unless_adapters_are_asked_for(
    keys: dict[str, Any], tmp_path: Path, encoder: dict[str, Any], mode: str
) -> None:
    many = table(MOST_TUNED + 5)
    many["smiles"] = ["[*]" + "C" * (1 + length) + "[*]" for length in range(len(many))]
    many.to_csv(tmp_path / "table.csv", index=False)
    said = {**keys, "encoder": {**keys["encoder"], **encoder}}
    names = Description("smiles", ["x"], None, "tg", None, (), said)
    experiment, _ = described(tmp_path / "table.csv", tmp_path, names)
    assert experiment.encoder.mode == mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trian": {}}, "unknown argument or key 'trian'; did you mean 'train'"),
        ({"targets": "tg"}, "did you mean 'target'"),
        ({"train": 3}, r"train must be a mapping of its keys, such as train=\{\"epochs\": 3\}"),
        ({"config": 3}, "config must be a mapping or a YAML file's path"),
        ({"config": "none.yaml"}, "there is no config file none.yaml"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionModel(**arguments)


@pytest.mark.parametrize(
    ("arguments", "frame", "error", "message"),
    [
        ({"target": "tgg"}, table(), ConfigError, "no column 'tgg'.*did you mean 'tg'"),
        ({"target": "tg"}, table().to_numpy(), TableError, "polars or pandas frame"),
        ({"target": "tg"}, table(4), SplitError, "no row is in validation"),
        ({"target": "tg"}, "none.csv", TableError, "there is no table none.csv"),
        ({"target": 3}, table(), ConfigError, "columns are given as a name"),
        ({"target": {"name": "tg"}}, table(), ConfigError, "must name its column"),
        ({"target": "tg", "train": {"epocs": 3}}, table(), ConfigError, "did you mean 'epochs'"),
    ],
)
def test_frames_that_cannot_be_fitted_are_refused(
    arguments: dict[str, Any], frame: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FusionModel(**arguments, verbose=False).fit(frame)


def test_mixed_and_doubled_columns_of_pandas_are_refused() -> None:
    frame = table()
    with pytest.raises(TableError, match="several columns 'x'"):
        FusionModel(target="tg").fit(frame.rename(columns={"solvent": "x"}))
    frame["x"] = [1, "a"] * 100
    with pytest.raises(TableError, match="'x' of the frame mixes types"):
        FusionModel(target="tg").fit(frame)


def test_what_is_no_model_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, message in (
        (tmp_path / "a", "holds no trained model"),
        (tmp_path / "b", "there is no folder"),
        ("nobody/nothing-at-all", "HF_HUB_OFFLINE is set"),
    ):
        with pytest.raises(RunError, match=message):
            FusionModel.load(name)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_fit_did_not_write_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    config, own = tmp_path / "config.yaml", tmp_path / "table.parquet"
    config.write_text("learning_rate: 0.1\n")
    own.write_bytes(b"somebody's")
    with pytest.raises(RunError, match="not written by a fit, so it is left alone"):
        FusionModel(target="tg", folder=tmp_path).fit(table(), overwrite=overwrite)
    assert config.read_text() == "learning_rate: 0.1\n"
    assert own.read_bytes() == b"somebody's"


@pytest.mark.slow
def test_a_fit_of_members_and_bins_predicts(keys: dict[str, Any], tmp_path: Path) -> None:
    changed = {**keys, "model": {**SMALL["model"], "members": 3, "numeric": "ple"}}
    folder = tmp_path / "work"
    model = FusionModel(strings="smiles", target="tg", folder=folder, verbose=False, **changed)
    found = model.fit(table()).predict(table())
    assert found["predicted_tg"].notna().all()
    spread = model.model.predict(table(), uncertainty=True)["epistemic_tg"]
    assert (spread > 0).all()
