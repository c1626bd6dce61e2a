"""A run is tried before it starts, to say how long it will take; the trial changes nothing."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embedcache.cache.reader import open_cache
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.train import forecast
from fusionnet.train.trainer import Trainer
from fusionnet.workflow.recipes import recipe_of


def trainer(config: Path, *overrides: str) -> Trainer:
    """Return a trainer that has what a forecast reads."""
    experiment = load_experiment(config, list(overrides))
    cache = open_cache(experiment.cache.path)
    recipe = recipe_of(experiment, cache)
    model = build_model(recipe, cache.layout, cache.scaling).train()
    made = object.__new__(Trainer)
    made.__dict__ |= dict(
        recipe=recipe,
        cache=cache,
        model=model,
        sources=make_sources(model, recipe, cache),
        plan=StepPlan(96, 32, 2, 1, 0),
        world=SimpleNamespace(size=1, device=torch.device("cpu")),
        validation_rows=SimpleNamespace(num_rows=24),
    )
    return made


@pytest.mark.parametrize("mode", ["naive", "per_microbatch", "per_step", "frozen"])
def test_a_trial_leaves_the_model_and_the_random_state_alone(
    tiny_experiment: Path, mode: str
) -> None:
    tried = trainer(tiny_experiment, f"encoder.mode={mode}")
    weights = {name: value.clone() for name, value in tried.model.state_dict().items()}
    state = torch.get_rng_state()
    assert 0 < forecast.forecast_s(tried).total < 60
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None for each in tried.model.parameters())
    assert all(torch.equal(weights[name], now) for name, now in tried.model.state_dict().items())


def test_time_is_counted_as_often_as_it_is_spent(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_seconds", lambda once: 1.0)
    # 3 steps of 2 micro-batches; two columns of one encoder, whose strings are encoded together,
    # once per step and once per epoch; 24 rows of validation
    tried = trainer(tiny_experiment, "train.epochs=5")
    network = 5 * (3 * 2 + forecast.EVALUATION * 24 / 16)
    assert forecast.forecast_s(tried) == pytest.approx((network, 5 * (3 + forecast.ENCODED)))
    # each trial encodes all strings once, so every other number of tokens counts in proportion
    naive = trainer(tiny_experiment, "train.epochs=5", "encoder.mode=naive")
    encoded = sum(
        int(source.lengths.max()) * 32 / int(source.lengths.sum()) for source in naive.sources
    )
    assert forecast.forecast_s(naive) == pytest.approx(
        (network, 5 * (3 * encoded + 2 * forecast.ENCODED))
    )
    frozen = trainer(tiny_experiment, "train.epochs=5", "encoder.mode=frozen")
    assert forecast.forecast_s(frozen) == pytest.approx((network, 0))


def test_a_slurm_job_that_ends_first_says_so(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "forecast_s", lambda trainer: forecast.Seconds(7000.0, 200.0))
    tried = trainer(tiny_experiment)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert "--resume" in forecast.forecast(tried)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 10_000))
    assert forecast.forecast(tried) == "about 2.0 h for 2 epochs"


@pytest.mark.parametrize(("encoder", "is_told"), [(240.0, False), (899.0, False), (2400.0, True)])
def test_a_long_encoding_is_told_with_what_it_takes_without(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch, encoder: float, is_told: bool
) -> None:
    found = forecast.Seconds(900.0, encoder)
    monkeypatch.setattr(forecast, "forecast_s", lambda trainer: found)
    text = forecast.forecast(trainer(tiny_experiment))
    assert ("40 min of them train the encoder; with encoder.mode=frozen" in text) is is_told
    assert text.endswith("in about 15 min") is is_told
