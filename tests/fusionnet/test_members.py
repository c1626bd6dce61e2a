"""An ensemble in one run: trained, proven, resumed, evaluated, predicted, rewarded and exported."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError
from fusionnet import RewardModel
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.experiment import load_experiment
from fusionnet.model.forward import to_units
from fusionnet.model.members import members_of
from fusionnet.trained.run import load_run
from fusionnet.workflow.training import train_experiment

NUM_OUTPUTS = 3  # of the tiny experiment's tasks


def trained(config: Path, folder: Path, *further: str, verbose: bool = False) -> Path:
    """Return the folder of a run of three members."""
    keys = [f"run.dir={folder}", "model.members=3", "train.prove=1", *further]
    train_experiment(load_experiment(config, keys), str(config), verbose=verbose)
    return folder


@pytest.fixture(scope="module")
def run(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members") / "run"
    return trained(tiny_experiment, folder, "reward={terms: [{task: ef, weight: 1.0}]}")


@pytest.mark.slow
def test_a_run_of_members_is_proven_and_read(run: Path, tiny_experiment: Path) -> None:
    loaded = load_run(run)
    assert loaded.certificate.startswith("proven")
    assert loaded.recipe.model.num_own_layers == 1
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    model = RewardModel(loaded)
    found = model.predict(frame, uncertainty=True)
    vectors, inputs = model.inputs(frame)
    standardised = loaded.scaling.apply(inputs.numeric)
    rows = type(inputs)(inputs.string_id, standardised, inputs.category)
    with torch.no_grad():
        outputs = loaded.model.network(vectors, rows)
    members = torch.stack(
        [to_units(each, loaded.tasks, loaded.scaling) for each in members_of(outputs, NUM_OUTPUTS)]
    )
    for place, column in enumerate(("outcome", "good", "gappy")):
        for name, wanted in (("predicted", members.mean(0)), ("epistemic", members.std(0, False))):
            values = found[f"{name}_{column}"].to_torch().float()
            torch.testing.assert_close(values, wanted[:, place], rtol=1e-3, atol=1e-3)
    assert found["epistemic_outcome"].min() > 0
    assert not [name for name in model.predict(frame).columns if "epistemic" in name]

    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    evaluated = evaluate_run(loaded, cache, "test", progress=False)
    assert json.dumps(evaluated.to_json(loaded))
    assert write_report(loaded, evaluated, loaded.records, loaded.folder).exists()
    assert (run / "network.safetensors").exists()


@pytest.mark.slow
def test_the_rewards_slope_is_that_of_the_mean(run: Path, tiny_experiment: Path) -> None:
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")[:5]
    model = RewardModel.load(run)
    vectors, inputs = model.inputs(frame)
    numeric = inputs.numeric.double().requires_grad_()
    moved = type(inputs)(inputs.string_id, numeric, inputs.category)
    rewards = model.differentiable(vectors, moved)
    torch.testing.assert_close(rewards, model.reward(frame), rtol=1e-4, atol=1e-4)
    rewards.sum().backward()
    step = 1e-2
    higher, lower = (
        type(inputs)(
            inputs.string_id, inputs.numeric + torch.tensor([[sign, 0, 0]]), inputs.category
        )
        for sign in (step, -step)
    )
    with torch.no_grad():
        slope = model.differentiable(vectors, higher) - model.differentiable(vectors, lower)
    torch.testing.assert_close(numeric.grad[:, 0].float(), slope / (2 * step), rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["modality", "mlp"])
def test_other_fusions_train(
    fusion: str, tiny_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (f"model.fusion={fusion}", "encoder.mode=frozen", "train.epochs=1")
    folder = trained(tiny_experiment, tmp_path / "run", *keys, verbose=True)
    said = "members    3 networks in one, each with its own heads and the last 1 of 2 layers"
    assert said in capsys.readouterr().out
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    found = RewardModel.load(folder).predict(frame, uncertainty=True)
    assert found["predicted_outcome"].is_finite().all()
    assert found["epistemic_good"].min() >= 0


def test_a_spread_of_one_member_is_refused(made_run: Path, tiny_experiment: Path) -> None:
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    with pytest.raises(ConfigError, match=r"learnt no uncertainty: train with .*model\.members=8"):
        RewardModel.load(made_run).predict(frame, uncertainty=True)
