"""Features of strings in the network: beside a language model or instead of one, trained, proven,
evaluated, and computed for strings that a run has never seen.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from provable import Training
from shared_fixtures import TINY_STRINGS, tiny_config, tiny_frame

from embedcache.build.decide import build_cache
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import ConfigError, ProofError, RunError, TableError
from embedcache.features import origin
from embedcache.features.chemistry import features_of
from embedcache.live.features import FeaturedColumn
from fusionnet import FusionModel, RewardModel
from fusionnet.assemble import build_model, make_sources
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.experiment import load_experiment
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.recipe import model_of
from fusionnet.rows.tensors import load_rows
from fusionnet.trained import features as trained_features
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.inspecting import as_text
from fusionnet.workflow.recipes import recipe_of
from fusionnet.workflow.training import train_experiment

NEW = ["[*]CCCC[*]", "[*]CC([*])CO"]
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny table, and numbers on its strings."""
    folder = tmp_path_factory.mktemp("features")
    tiny_frame().write_parquet(folder / "table.parquet")
    own = {"tg": [1.0, None, 3.0, 4.5, -2.0, 1e30, 2.0], "smiles": TINY_STRINGS}
    pl.DataFrame(own).write_csv(folder / "own.csv")
    return folder


@pytest.fixture(scope="module")
def make_config(folder: Path, tiny_encoder_folder: Path) -> Maker:
    """Write the tiny experiment's config with features, and build its cache."""

    def make(name: str, polymer: list[Any], partner: list[Any], **sections: Any) -> Path:
        config: dict[str, Any] = tiny_config(folder, tiny_encoder_folder)
        config["cache"]["path"] = str(folder / f"{name}.zarr")
        config["run"]["dir"] = str(folder / f"{name}_run")
        for column, features in zip(config["data"]["strings"], (polymer, partner), strict=True):
            column["features"] = features
        for section, keys in sections.items():
            config.setdefault(section, {}).update(keys)
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        experiment = load_experiment(file)
        parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
        build_cache(*parts, experiment.cache)
        return file

    return make


@pytest.fixture(scope="module")
def beside(make_config: Maker, folder: Path) -> Path:
    """An encoder for two columns, of which one has features of all kinds."""
    own = {"table": str(folder / "own.csv"), "key": "smiles"}
    return make_config("beside", ["rdkit", own, "morgan"], [])


@pytest.fixture(scope="module")
def alone(make_config: Maker) -> Path:
    """Features without an encoder: the one that the config names is not there."""
    encoder = {"mode": "none", "source": "/nowhere"}
    return make_config("alone", ["rdkit", "morgan"], ["morgan"], encoder=encoder)


def cache_of(config: Path) -> Cache:
    return open_cache(load_experiment(config).cache.path)


CASES = {
    "per_step": ("beside", ["encoder.mode=per_step"], False),
    "per_step, modality": ("beside", ["encoder.mode=per_step", "model.fusion=modality"], False),
    "per_step, static": ("beside", ["encoder.mode=per_step"], True),
    "naive": ("beside", ["encoder.mode=naive"], False),
    "frozen, static": ("beside", ["encoder.mode=frozen", "model.fusion=mlp"], True),
    "none": ("alone", [], False),
    "none, members": ("alone", ["model.members=3"], False),
    "per_step, members, modality": ("beside", ["model.members=2", "model.fusion=modality"], False),
    "none, static, modality": ("alone", ["model.fusion=modality"], True),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_training_is_proven_and_rows_at_speed_are_the_networks_own(
    case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name, overrides, static = CASES[case]
    config = request.getfixturevalue(name)
    training = Training(config, tmp_path, *overrides, static=static)
    assert training.prove().passed
    training.reset()
    training.epoch()
    network = training.model.eval().network
    tables = [source.vectors_of_all_strings() for source in training.sources]
    for table, spec in zip(tables, cache_of(config).layout.strings, strict=True):
        assert table.shape == (spec.num_strings, spec.full_width)
    rows = load_rows(cache_of(config), "test")
    evaluate = RowEvaluator(network, torch.float32)
    with torch.no_grad():
        fast = evaluate(evaluate.tables(tables), rows.inputs)
        assert torch.allclose(fast, network(tables, rows.inputs), atol=1e-5)
        other = [torch.cat([tables[0][:, :-1], tables[0][:, -1:] + 1], dim=1), *tables[1:]]
        assert not torch.allclose(fast, network(other, rows.inputs), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beside", "alone"])
def test_another_strings_features_are_seen(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    training = Training(request.getfixturevalue(name), tmp_path)
    source = training.sources[0]
    assert isinstance(source, FeaturedColumn)
    source._features = source._features.roll(1, dims=0)
    with pytest.raises(ProofError, match=r"feature_adapters\.polymer"):
        training.prove()


@pytest.mark.slow
def test_all_modes_give_the_same_before_lora_has_learnt(beside: Path) -> None:
    rows = load_rows(cache_of(beside), "train").take(slice(0, 40))
    found = {}
    for mode in ("naive", "per_microbatch", "per_step", "frozen"):
        experiment = load_experiment(beside, [f"encoder.mode={mode}"])
        cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, cache)
        model = build_model(recipe, cache.layout, cache.scaling, live=True).eval()
        sources = make_sources(model, recipe, cache)
        for column, source in enumerate(sources):
            source.begin_step(rows.string_id[:, column], 1)
        read = [source.read(rows.string_id[:, c]) for c, source in enumerate(sources)]
        index = torch.stack([each.vector_index for each in read], dim=1)
        inputs = type(rows.inputs)(index, rows.numeric, rows.category)
        found[mode] = model.outputs([each.vectors for each in read], inputs)
    for mode, outputs in found.items():
        assert torch.allclose(outputs, found["naive"], rtol=1e-4, atol=1e-4), mode


def test_features_have_a_summand_or_a_token_of_their_own(beside: Path, alone: Path) -> None:
    for config, adapters in ((beside, ["polymer", "partner"]), (alone, [])):
        cache = cache_of(config)
        for fusion in ("joint", "modality"):
            recipe = recipe_of(load_experiment(config, [f"model.fusion={fusion}"]), cache)
            with torch.device("meta"):
                network = model_of(recipe, cache.layout, cache.scaling, {}).network
            assert list(network.adapters) == adapters
            described = [spec.name for spec in cache.layout.strings if spec.features]
            assert list(network.feature_adapters) == described
            names = [name for name, _ in network.parameter_table()]
            assert [f"feature adapter {name}" for name in described] == [
                name for name in names if name.startswith("feature")
            ]


def test_without_a_language_model_nothing_is_read_or_tokenised(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("embedcache.build.strings", "fusionnet.assemble", "embedcache.build.vectors"):
        monkeypatch.setattr(f"{place}.load_encoder", lambda *_: 1 / 0)
    changes = ["data.on_invalid=skip", f"cache.path={alone.parent / 'skipping.zarr'}"]
    experiment = load_experiment(alone, ["train.prove=1", "train.baselines=true", *changes])
    parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
    build_cache(*parts, experiment.cache)
    train_experiment(experiment, "alone.yaml")
    said = capsys.readouterr().out
    assert "no language model" in said
    assert "saving" not in said
    assert "LoRA" not in said
    cache, run = open_cache(experiment.cache.path), load_run(experiment.run.dir)
    assert run.certificate.startswith("proven")
    assert not [*run.folder.glob("adapter*"), *run.folder.glob("tokenizer*")]
    card = (run.folder / "README.md").read_text()
    assert "no language model; features rdkit 432, morgan 2,048" in card
    assert "nowhere" not in card
    assert "which no language model reads" in as_text(cache)
    assert "strings encoded" not in as_text(cache)
    found = evaluate_run(run, cache, "test", progress=False)
    page = write_report(run, found, run.records, run.folder).read_text()
    assert "no language model reads the strings" in page
    assert torch.equal(
        run.vectors["partner"],
        make_sources(run.model, run.recipe, cache)[1].vectors_of_all_strings(),
    )
    check_predictions(run, cache, NEW)


@pytest.mark.slow
def test_a_run_beside_an_encoder_predicts_as_it_trained(
    beside: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment(beside)
    train_experiment(experiment, "beside.yaml")
    assert "features rdkit 432, own.csv 1, morgan 2,048 (polymer)" in capsys.readouterr().out
    cache, run = open_cache(experiment.cache.path), load_run(experiment.run.dir)
    frame = pl.read_parquet(experiment.data.files[0]).head(4)
    with pytest.raises(TableError, match=r"2 strings of column 'polymer' without features"):
        RewardModel(run).predict(frame.with_columns(smiles=pl.Series(NEW * 2)))
    lenient = RewardModel(run).predict(
        frame.with_columns(smiles=pl.Series([*NEW, *TINY_STRINGS[:2]])), on_invalid="skip"
    )
    assert lenient["predicted_outcome"].is_null().to_list() == [True, True, False, False]
    assert "has no features in" in lenient["reason"][0]

    own = folder / "own.csv"
    kept = own.read_text()
    own.write_text(kept + "".join(f"7,{text}\n" for text in NEW))
    check_predictions(load_run(experiment.run.dir), cache, NEW)
    own.write_text(kept.replace("tg", "tm"))
    again = load_run(experiment.run.dir)
    with pytest.raises(RunError, match="other columns than in the training"):
        trained_features.features_of_new(again, experiment.data.strings[0], TINY_STRINGS[:1])
    own.unlink()
    gone = load_run(experiment.run.dir)
    RewardModel(gone).predict(frame)
    with pytest.raises(TableError, match=r"no table .*own.csv"):
        RewardModel(gone).predict(frame.with_columns(smiles=pl.lit(NEW[0])))
    (folder / "moved.csv").write_text(kept + f"7,{NEW[0]}\n")
    file = gone.folder / "tiny_config.yaml"  # says where the table lies now
    file.write_text(file.read_text().replace("own.csv", "moved.csv"))
    RewardModel(load_run(gone.folder)).predict(frame.with_columns(smiles=pl.lit(NEW[0])))
    own.write_text(kept)


def check_predictions(run: TrainedRun, cache: Cache, new: list[str]) -> None:
    """The run's predictions are those of its cache, and new strings have features of their own."""
    rows = load_rows(cache, "test")
    frame = pl.read_parquet(run.config["data"]["path"])
    predicted = RewardModel(run).predict(frame)["predicted_outcome"].to_numpy()[rows.row.numpy()]
    tables = [run.vectors[spec.name] for spec in cache.layout.strings]
    with torch.no_grad():
        outputs = run.model.outputs(tables, rows.inputs)[:, 0]
    wanted = outputs * cache.scaling.target_std[0] + cache.scaling.target_mean[0]
    assert np.allclose(predicted, wanted, rtol=1e-4, atol=1e-4)

    found = vectors_of_all_strings(run, "polymer", [*new, TINY_STRINGS[0]])
    spec = run.layout.strings_of("polymer")
    parts = [
        features_of(new, "psmiles", each.name)  # type: ignore[arg-type]
        if each.name in ("rdkit", "morgan")
        else np.full((len(new), 1), 7, dtype=np.float32)
        for each in spec.features
    ]
    raw = torch.from_numpy(np.concatenate(parts, axis=1))
    assert torch.equal(found[:-1, spec.width :], run.scaling.string_features["polymer"].apply(raw))
    known = run.strings["polymer"][TINY_STRINGS[0]]
    assert torch.equal(found[-1], run.vectors["polymer"][known])
    assert torch.equal(vectors_of_all_strings(run, "polymer", new), found[:-1])  # remembered
    marked = RewardModel(run).predict(frame[:2].with_columns(smiles=pl.Series(new)))
    assert marked["known"].to_list() == [False, False]


def test_new_strings_want_the_rdkit_of_the_training(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(alone, ["run.name=other", f"run.dir={alone.parent / 'other'}"])
    train_experiment(experiment, "alone.yaml", verbose=False)
    run = load_run(experiment.run.dir)
    monkeypatch.setattr(origin, "version", lambda name: "2031.1")
    vectors_of_all_strings(run, "polymer", TINY_STRINGS)
    with pytest.raises(RunError, match=r"features of RDKit .* and this is RDKit 2031.1"):
        vectors_of_all_strings(run, "polymer", NEW)


def test_a_column_that_nothing_reads_is_refused_by_name(alone: Path) -> None:
    with pytest.raises(ConfigError, match="nothing else reads string column 'partner'"):
        load_experiment(alone, ["data.strings.1.features=[]"])


@pytest.mark.slow
def test_an_estimator_takes_features_instead_of_an_encoder(tmp_path: Path) -> None:
    frame = tiny_frame(120).select("smiles", "x0", "outcome")
    model = FusionModel(
        strings={"column": "smiles", "features": ["morgan"]},
        target="outcome",
        encoder={"mode": "none"},
        train={"epochs": 1},
    ).fit(frame)
    predicted = model.predict(frame.with_columns(smiles=pl.lit(NEW[0])))
    assert predicted["predicted_outcome"].is_finite().all()
