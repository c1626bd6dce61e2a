"""A policy learns what random designs find by luck, and the same for a seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig, RewardTerm
from fusionnet.rl.environment import FormulationVectorEnv, designs_of
from fusionnet.rl.ppo import (
    NUM_LEVELS,
    LevelsVecEnv,
    action_of_levels,
    designs_by,
    level_space,
    train_policy,
)

REWARD = RewardConfig(terms=(RewardTerm(task="ef", weight=1.0),))


@pytest.fixture(scope="module")
def env(made_run: Path, tiny_experiment: Path) -> FormulationVectorEnv:
    table = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    frame = table.with_columns(x1=pl.col("x1").first().over("patient"))
    model = RewardModel(replace(RewardModel.load(made_run).run, reward=REWARD))
    return FormulationVectorEnv.of_run(model, frame, num_envs=64)


def test_levels_reach_both_bounds_and_are_evenly_spaced(env: FormulationVectorEnv) -> None:
    space = env.problem.space
    assert level_space(space).nvec.tolist() == [
        space.num_materials,
        *[NUM_LEVELS] * len(space.variables),
    ]
    for level, share in ((0, 0.0), (NUM_LEVELS - 1, 1.0), ((NUM_LEVELS - 1) // 2, 0.5)):
        levels = np.full((1, 1 + len(space.variables)), level)
        levels[:, 0] = 2
        action = action_of_levels(space, levels)
        assert action["values"].tolist() == [[share] * len(space.variables)]
        assert designs_of(space, action).material.tolist() == [2]


def test_baselines_sees_the_same_rewards_and_patients(env: FormulationVectorEnv) -> None:
    levels = LevelsVecEnv(env)
    levels.seed(3)
    first = levels.reset()
    levels.action_space.seed(0)
    taken = np.stack([levels.action_space.sample() for _ in range(env.num_envs)])
    following, reward, ended, infos = levels.step(taken)
    observed, _ = env.reset(seed=3)
    after, wanted, *_ = env.step(action_of_levels(env.problem.space, taken))
    assert np.array_equal(first, observed)
    assert np.array_equal(following, after)
    assert reward == pytest.approx(wanted, abs=1e-6)
    assert ended.all()
    assert np.array_equal([info["terminal_observation"] for info in infos], first)


@pytest.mark.slow
def test_a_policy_beats_what_it_began_with_and_is_the_same_for_a_seed(
    env: FormulationVectorEnv,
) -> None:
    problem = env.problem
    patients = np.arange(problem.num_patients)
    policy = train_policy(env, 8192, seed=1)
    learned = designs_by(policy, env, patients)
    untrained = designs_by(train_policy(env, 64, seed=1, n_epochs=1), env, patients)
    found, before = (problem.rewards(patients, each).total.mean() for each in (learned, untrained))
    generator = np.random.default_rng(0)
    random = problem.space.draw(generator, 4000)
    rewards = problem.rewards(generator.integers(problem.num_patients, size=4000), random).total
    assert found > before
    assert found > rewards.quantile(0.9)
    again = designs_by(train_policy(env, 8192, seed=1), env, patients)
    assert all(np.array_equal(one, other) for one, other in zip(learned, again, strict=True))
