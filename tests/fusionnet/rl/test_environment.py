"""Environments pay what `RewardModel.rewards` gives, in one batch or one by one, for designs that
are inside of the space whatever the action.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import polars as pl
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

from embedcache.errors import DesignError
from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig, RewardPenalty, RewardTerm
from fusionnet.rl.environment import FormulationEnv, FormulationVectorEnv, designs_of
from fusionnet.rl.problem import DesignProblem, design_problem

TERMS = (RewardTerm(task="ef", weight=0.5), RewardTerm(task="opt", weight=0.3))


def patients_frame(table: pl.DataFrame) -> pl.DataFrame:
    """Return the tiny table with a feature that patients have: x1."""
    return table.with_columns(x1=pl.col("x1").first().over("patient"))


def choices_frame(table: pl.DataFrame) -> pl.DataFrame:
    """Return the tiny table with a choice between x0 and x1, and nothing that patients have."""
    visit = pl.int_range(pl.len()) // 12  # rows go round the twelve patients
    one = (visit % 3 == 0).cast(pl.Float64)
    return table.with_columns(x0=one, x1=1 - one)


@pytest.fixture(scope="module")
def table(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def model(made_run: Path, table: pl.DataFrame) -> RewardModel:
    """Return a model with a penalty that half of the rows pay."""
    plain = RewardModel.load(made_run)
    above = plain.predict(table)["predicted_gappy"].median()
    penalties = (RewardPenalty(task="aux", above=above, penalty=1.0),)
    return RewardModel(replace(plain.run, reward=RewardConfig(terms=TERMS, penalties=penalties)))


@pytest.fixture(scope="module", params=[patients_frame, choices_frame])
def problem(
    request: pytest.FixtureRequest, model: RewardModel, table: pl.DataFrame
) -> DesignProblem:
    found = design_problem(model, request.param(table))
    is_choice = request.param is choices_frame
    assert found.space.choices == ((("x0", "x1"),) if is_choice else ())
    assert found.space.fixed == (() if is_choice else ("x1",))
    return found


@pytest.fixture(scope="module")
def of_patients(model: RewardModel, table: pl.DataFrame) -> DesignProblem:
    return design_problem(model, patients_frame(table))


def test_gymnasium_and_stable_baselines_find_nothing_wrong(problem: DesignProblem) -> None:
    from stable_baselines3.common.env_checker import check_env as check_for_baselines

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # no bounds: features are standardised; no rendering: there is nothing to see
        warnings.filterwarnings("ignore", message=".*Box observation space.*infinity")
        warnings.filterwarnings("ignore", message=".*created through `gymnasium.make`")
        warnings.filterwarnings("ignore", message=".*not have a spec")
        check_env(FormulationEnv(problem), skip_render_check=True)
        # its algorithms take no hybrid actions, and it says so
        warnings.filterwarnings("ignore", message=".*action space is not based off a numpy array")
        check_for_baselines(FormulationEnv(problem))


def test_the_reward_is_the_models_for_the_same_rows(
    problem: DesignProblem, model: RewardModel
) -> None:
    env = FormulationVectorEnv(problem, 50)
    env.reset(seed=3)
    env.action_space.seed(4)
    paid, totals = set(), []
    for _ in range(3):
        action = env.action_space.sample()
        _, reward, ended, cut, infos = env.step(action)
        told = infos["final_info"]
        rows = problem.rows(told["patient"], designs_of(problem.space, action))
        wanted = model.rewards(rows)
        assert reward == pytest.approx(wanted.total.numpy(), abs=1e-5)
        assert told["reward_ef"] == pytest.approx(wanted.terms[:, 0].numpy(), abs=1e-5)
        assert told["penalty_aux"] == pytest.approx(wanted.penalties[:, 0].numpy(), abs=1e-5)
        assert told["known"].all()
        assert told["outside"].tolist() == wanted.outside.tolist()
        parts = told["reward_ef"] + told["reward_opt"] - told["penalty_aux"] - told["doubt"]
        assert reward == pytest.approx(parts, abs=1e-5)
        assert ended.all()
        assert not cut.any()
        paid |= set(told["penalty_aux"])
        totals += reward.tolist()
    assert paid == {0.0, 1.0}
    assert np.std(totals) > 0.1


def test_one_environment_is_a_row_of_many(of_patients: DesignProblem) -> None:
    many, one = FormulationVectorEnv(of_patients, 6), FormulationEnv(of_patients)
    names = [of_patients.names[number] for number in (3, 0, 5, 5, 1, 2)]
    observed, _ = many.reset(options={"patients": names})
    many.action_space.seed(0)
    actions = many.action_space.sample()
    _, reward, _, _, infos = many.step(actions)
    for row, name in enumerate(names):
        seen, info = one.reset(options={"patient": name})
        assert info == {"patient": name}
        assert seen.tolist() == observed[row].tolist() == infos["final_obs"][row].tolist()
        action = {key: part[row] for key, part in actions.items()}
        last, own, ended, cut, told = one.step(action)
        assert (ended, cut, told["patient"]) == (True, False, name)
        assert own == pytest.approx(reward[row], abs=1e-5)
        assert last.tolist() == seen.tolist()
    assert len({tuple(row) for row in observed.tolist()}) == 5  # patients differ


def test_observations_are_the_patients_features_as_the_network_reads_them(
    of_patients: DesignProblem, model: RewardModel, table: pl.DataFrame
) -> None:
    of_patient = dict(patients_frame(table).select("patient", "x1").iter_rows())
    place = model.run.scaling.columns.index("x1")
    raw = torch.zeros(of_patients.num_patients, len(model.run.scaling.columns))
    raw[:, place] = torch.tensor([of_patient[name] for name in of_patients.names])
    wanted = model.run.scaling.apply(raw)[:, [place]]
    torch.testing.assert_close(torch.from_numpy(of_patients.observations), wanted)


def test_a_seed_fixes_patients(of_patients: DesignProblem) -> None:
    env, same = FormulationVectorEnv(of_patients, 40), FormulationVectorEnv(of_patients, 40)
    env.action_space.seed(0)
    action = env.action_space.sample()
    first = [env.reset(seed=5)[0], env.step(action)[0], env.step(action)[0]]
    again = [same.reset(seed=5)[0], same.step(action)[0], same.step(action)[0]]
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1], first[2])
    assert not np.array_equal(first[0], env.reset(seed=6)[0])


def test_every_action_is_inside_of_the_space(problem: DesignProblem) -> None:
    env = FormulationVectorEnv(problem, 500)
    env.action_space.seed(1)
    for shares in (0.0, 1.0, None):
        action = env.action_space.sample()
        if shares is not None:
            action["values"][:] = shares
        designs = designs_of(problem.space, action)
        problem.space.check(designs)  # raises otherwise
        assert designs.material.tolist() == action["material"].tolist()
        for choice in action.get("choices", np.zeros((0, 0))).T:
            assert designs.choice[:, 0].tolist() == choice.tolist()
            assert set(choice) == {0, 1}
        at_end = {0.0: problem.space.low, 1.0: problem.space.high}.get(shares)
        if at_end is not None:
            assert designs.values == pytest.approx(at_end[designs.material])


def test_what_is_no_action_is_refused(of_patients: DesignProblem) -> None:
    env, one = FormulationVectorEnv(of_patients, 2), FormulationEnv(of_patients)
    action, single = env.action_space.sample(), one.action_space.sample()
    with pytest.raises(ResetNeeded):
        env.step(action)
    with pytest.raises(ResetNeeded):
        one.step(single)
    env.reset()
    one.reset()
    with pytest.raises(InvalidAction, match="actions must be of Dict"):
        env.step({**action, "values": action["values"] + 2})
    with pytest.raises(InvalidAction, match="actions must be of"):
        env.step({"material": action["material"]})
    with pytest.raises(InvalidAction, match="an action must be of Dict"):
        one.step({**single, "material": np.int64(10_000)})
    with pytest.raises(InvalidAction, match="3 patients for 2 environments"):
        env.reset(options={"patients": ["P00"] * 3})


def test_patients_may_be_few_and_must_be_there(
    model: RewardModel, table: pl.DataFrame, of_patients: DesignProblem
) -> None:
    frame = patients_frame(table)
    few = FormulationVectorEnv.of_run(model, frame, 9, patients=["P07", "P02"])
    assert few.problem.names == ("P07", "P02")
    seen, _ = few.reset(seed=0)
    wanted = of_patients.observations[[of_patients.index_of(name) for name in ("P07", "P02")]]
    assert set(map(float, seen[:, 0])) == set(map(float, wanted[:, 0]))
    with pytest.raises(DesignError, match=r"patients must be among .*P00.*; got P99"):
        FormulationEnv.of_run(model, frame, patients=["P99", "P01"])
    with pytest.raises(DesignError, match=r"there is no patient 'P7'"):
        FormulationEnv.of_run(model, frame).reset(options={"patient": "P7"})


def test_pessimism_takes_what_the_members_disagree_about(
    make_run: Callable[..., Path], table: pl.DataFrame, tmp_path: Path
) -> None:
    folder = make_run(
        tmp_path / "run", model={"members": 3}, reward=RewardConfig(terms=TERMS).model_dump()
    )
    model, frame = RewardModel.load(folder), patients_frame(table)
    plain = FormulationVectorEnv.of_run(model, frame, 30)
    wary = FormulationVectorEnv.of_run(model, frame, 30, pessimism=2.0)
    plain.action_space.seed(0)
    action = plain.action_space.sample()
    for env in (plain, wary):
        env.reset(seed=0)
    _, reward, *_, infos = plain.step(action)
    _, less, *_, doubted = wary.step(action)
    doubt = doubted["final_info"]["doubt"]
    assert not infos["final_info"]["doubt"].any()
    assert (doubt > 0).all()
    assert less == pytest.approx(reward - doubt, abs=1e-5)


def test_both_are_gymnasiums(of_patients: DesignProblem) -> None:
    assert isinstance(FormulationEnv(of_patients), gymnasium.Env)
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(FormulationVectorEnv(of_patients, 4))
    env.reset(seed=0)
    _, reward, *_, infos = env.step(env.action_space.sample())
    assert infos["episode"]["r"] == pytest.approx(reward)
