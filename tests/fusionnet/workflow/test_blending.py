"""A blend is chosen on validation rows and saved with its run: it predicts the same wherever the
run is loaded, it is part of what the run says of itself, and a file that is another's is refused.
"""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load, save
from shared_fixtures import tiny_config, tiny_frame

from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import RunError
from embedcache.split import scaffold
from fusionnet import FusionModel, RewardModel
from fusionnet.blend.saved import blend_bytes, blend_path
from fusionnet.config.tasks import prediction_columns
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.predicted import NETWORK_ALONE, TREES_ALONE
from fusionnet.evaluation.summary import summary
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.listing import read_listing
from fusionnet.trained.run import load_run
from fusionnet.workflow import blending
from fusionnet.workflow.blending import blend_run, blended
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.training import train_experiment

BLEND = {"boosting": True, "parts": 3, "most_trees": 30, "least_rows": 5}


@pytest.fixture(scope="module")
def cache(tiny_experiment: Path) -> Cache:
    return open_cache(tiny_experiment.parent / "cache.zarr")


@pytest.fixture(scope="module")
def run_folder(make_run, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its blend; its network is random, so that trees must count."""
    folder = make_run(tmp_path_factory.mktemp("blend") / "run", blend=BLEND)
    blend_run(folder, load_experiment(folder.with_name("run.yaml")), cache, verbose=False)
    return folder


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


def test_a_blend_is_better_than_a_network_that_knows_nothing(
    run_folder: Path, cache: Cache
) -> None:
    run = load_run(run_folder)
    for split in ("validation", "test"):
        found = evaluate_run(run, cache, split, progress=False, with_baselines=False)
        alone = {name: metrics["outcome"]["mae"] for name, metrics in found.parts.items()}
        assert found.metrics["outcome"]["mae"] < 0.7 * alone[NETWORK_ALONE]
        assert found.metrics["good"]["auroc"] > found.parts[NETWORK_ALONE]["good"]["auroc"]
        if split == "validation":
            assert found.metrics["outcome"]["mae"] <= 1.001 * min(alone.values())
    written = summary(run, found, run.records)
    assert NETWORK_ALONE in written
    assert TREES_ALONE in written
    assert json.loads(json.dumps(found.to_json(run)))["parts"][TREES_ALONE]["outcome"]["mae"]


def test_a_run_alone_is_the_same_network(run_folder: Path, made_run: Path, cache: Cache) -> None:
    plain = evaluate_run(load_run(made_run), cache, "test", progress=False, with_baselines=False)
    found = evaluate_run(load_run(run_folder), cache, "test", progress=False, with_baselines=False)
    assert found.parts[NETWORK_ALONE] == plain.metrics
    assert plain.parts == {}


def test_frames_are_predicted_as_the_evaluation_is(
    run_folder: Path, cache: Cache, frame: pl.DataFrame
) -> None:
    run, split = load_run(run_folder), cache.rows().split
    found = evaluate_run(run, cache, "test", progress=False, with_baselines=False)
    predicted = RewardModel(run).predict(frame.filter(pl.Series(split == 2)))
    wanted = predicted.select(pl.selectors.float()).to_numpy()
    np.testing.assert_allclose(found.predictions, wanted, rtol=1e-4, atol=1e-5)
    # in the unit of scores a class is told at 0.5 as in chances at its threshold
    column, rate = prediction_columns(run.tasks)[1], run.scaling.positive_rate["opt"]
    np.testing.assert_array_equal(
        found.scores[:, column] > 0.5, found.predictions[:, column] > rate
    )


def test_copies_of_a_model_predict_with_its_trees(
    run_folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    model = FusionModel.load(run_folder)
    wanted = model.predict(frame)
    alone = RewardModel(load_run(run_folder, with_blend=False)).predict(frame)
    assert not wanted["predicted_outcome"].equals(alone["predicted_outcome"])
    assert pickle.loads(pickle.dumps(model)).predict(frame).equals(wanted)
    assert FusionModel.load(model.save(tmp_path / "saved")).predict(frame).equals(wanted)


def test_a_string_that_trees_never_saw_is_predicted(run_folder: Path, frame: pl.DataFrame) -> None:
    new = frame.head(3).with_columns(smiles=pl.lit("[*]CCCCN[*]"))
    assert RewardModel.load(run_folder).predict(new)["predicted_outcome"].is_finite().all()


def test_no_test_row_and_no_other_label_changes_a_blend(
    run_folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(run_folder.with_name("run.yaml"))
    run = load_run(run_folder, with_blend=False)
    rows = cache.rows()
    test = rows.split == 2
    rows.targets[test] = 99
    rows.numeric[test] = 7
    monkeypatch.setattr(Cache, "rows", lambda self, *part: rows)
    changed = blended(run, experiment, cache, progress=False).blend
    assert (
        blend_bytes(changed, run.run_id, run.epoch) == blend_path(run_folder, "tiny").read_bytes()
    )
    own = evaluate_run(run, cache, "validation", progress=False, with_baselines=False)
    rows.targets[rows.split == 1, 0] = own.predictions[:, 0]  # weights are of validation rows
    other = blended(run, experiment, cache, progress=False).blend
    assert (changed.tasks["ef"].share, other.tasks["ef"].share) == (0, 1)
    for name, tensor in other.tasks["ef"].forest.tensors().items():
        assert torch.equal(tensor, changed.tasks["ef"].forest.tensors()[name])  # the trees are not


def test_a_table_too_large_for_trees_is_predicted_by_the_network(
    run_folder: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    monkeypatch.setattr(blending, "MOST_ROWS", 10)
    blend_run(copy, load_experiment(run_folder.with_name("run.yaml")), cache)
    assert "no trees are blended in: the table has more than 10 rows" in capsys.readouterr().out
    assert load_run(copy).blend is None


def test_trees_read_no_more_rows_than_memory_has_room_for(
    run_folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(run_folder, with_blend=False)
    sizes = []
    grow = blending.tree_plan

    def watched(config, task, rows, *others):
        sizes.append(rows.x.nbytes)
        return grow(config, task, rows, *others)

    monkeypatch.setattr(blending, "tree_plan", watched)
    monkeypatch.setattr(blending, "MOST_BYTES", 5_000)
    found = blended(run, load_experiment(run_folder.with_name("run.yaml")), cache, False).blend
    assert found.tasks.keys() == {"ef", "opt", "aux"}
    assert 2_500 < max(sizes) <= 5_000


@pytest.mark.parametrize("strategy", ["group", "random", "leave_strings_out", "scaffold"])
def test_what_no_split_takes_apart_is_in_one_part_of_the_trees(
    run_folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    experiment = load_experiment(run_folder.with_name("run.yaml"))
    split = experiment.split.model_copy(update={"strategy": strategy})
    parts: list[np.ndarray] = []
    grow = blending.tree_plan

    def watched(config, task, rows, *others):
        parts.append(rows.part)
        return grow(config, task, rows, *others)

    monkeypatch.setattr(blending, "tree_plan", watched)
    # two strings have one scaffold
    monkeypatch.setattr(scaffold, "scaffold_groups", lambda texts: np.arange(len(texts)) // 2)
    run = load_run(run_folder, with_blend=False)
    blended(run, experiment.model_copy(update={"split": split}), cache, progress=False)
    rows = cache.rows()
    train = np.flatnonzero(rows.split == 0)
    together = rows.group[train] if strategy in ("group", "random") else rows.string_id[train, 0]
    if strategy == "scaffold":
        together = together // 2
    assert len(np.unique(parts[0])) == BLEND["parts"]
    for number in np.unique(together):
        assert len(np.unique(parts[0][together == number])) == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path, data: path.unlink(), "missing"),
        (lambda path, data: path.write_bytes(data[:100]), "not the blend"),
        (
            lambda path, data: path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
            "damaged",
        ),
        (
            lambda path, data: path.write_bytes(data.replace(b"0000000007", b"0000000008")),
            "another",
        ),
        (lambda path, data: path.write_bytes(save(load(data))), "not the blend"),
    ],
)
def test_a_blend_that_is_not_the_runs_is_refused(
    run_folder: Path, tmp_path: Path, damage, said: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    path = blend_path(copy, "tiny")
    damage(path, path.read_bytes())
    with pytest.raises(RunError, match=said):
        load_run(copy)
    load_run(copy, "final")  # of other moments there is none


@pytest.mark.slow
def test_a_training_grows_trees_and_one_that_goes_on_without_takes_them_away(
    tiny_experiment: Path, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"extends": str(tiny_experiment), "blend": BLEND}))
    given = [f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    train_experiment(load_experiment(config, given), str(config), verbose=False)
    path = blend_path(tmp_path / "run", "tiny")
    run = load_run(tmp_path / "run")
    assert run.blend is not None
    assert path.name in read_listing(tmp_path / "run").files
    assert "boosting" in run.shares
    assert run.shares in (tmp_path / "run" / "README.md").read_text()
    without = load_experiment(config, [*given, "blend.boosting=false"])
    train_experiment(without, str(config), resume=True, verbose=False)
    assert not path.exists()


@pytest.mark.slow
def test_trees_read_the_features_of_strings_new_ones_too(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_frame().write_parquet(tmp_path / "table.parquet")
    values = tiny_config(tmp_path, tiny_encoder_folder)
    values["encoder"] = {"mode": "none"}
    values["data"]["strings"][0]["features"] = ["rdkit", "morgan"]
    values["data"]["strings"][1]["features"] = ["morgan"]
    values |= {"blend": BLEND}
    values["train"]["epochs"] = 1
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(values))
    experiment = load_experiment(config)
    build_experiment(experiment)
    train_experiment(experiment, str(config), verbose=False)
    run, cache = load_run(experiment.run.dir), open_cache(experiment.cache.path)
    polymer, partner = run.blend.columns.strings
    # 7 polymers differ in many ways, and no way is read twice
    assert 7 <= len(polymer.features) < 300
    assert polymer.texts == partner.texts == ()
    found = evaluate_run(run, cache, "test", progress=False, with_baselines=False)
    rows = tiny_frame().filter(pl.Series(cache.rows().split == 2))
    predicted = RewardModel(run).predict(rows)["predicted_outcome"].to_numpy()
    np.testing.assert_allclose(found.predictions[:, 0], predicted, rtol=1e-4, atol=1e-5)
    # a string by another name is another; one that is new has features of its own
    new = rows.head(40).with_columns(smiles=pl.lit("[*]CCCCCCN[*]"))
    moved = rows.head(40).with_columns(smiles=pl.lit("[*]CC[*]"))
    trees = RewardModel(replace(run, blend=run.blend.trees_alone()))
    at_new, at_old = (trees.predict(each)["predicted_outcome"].to_numpy() for each in (new, moved))
    assert np.isfinite(at_new).all()
    assert np.abs(at_new - at_old).max() > 1e-3
    # where strings are left out, trees are grown on fewer features of theirs too
    grow, selections = blending.tree_plan, []

    def watched(config, task, rows, validation, use, *others):
        selections.append([len(each) for each in use.selections])
        return grow(config, task, rows, validation, use, *others)

    monkeypatch.setattr(blending, "tree_plan", watched)
    left_out = experiment.split.model_copy(update={"strategy": "leave_strings_out"})
    for split in (experiment.split, left_out):
        blended(run, experiment.model_copy(update={"split": split}), cache, progress=False)
    width = run.blend.columns.num_columns
    assert selections[:3] == [[]] * 3  # of three tasks
    assert selections[3] == selections[4] == selections[5]
    rdkit_or_morgan, none = selections[3][:2], selections[3][2]
    assert none == width - len(polymer.features)
    assert sum(rdkit_or_morgan) == width + none
