"""A search finds what judging every design of a frame finds, block by block and for any seed."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache.errors import ConfigError, DesignError
from fusionnet.design import search as searching
from fusionnet.design.candidates import Candidates, grid, sequence
from fusionnet.design.deriving import from_rows, patients, read_rows
from fusionnet.design.objectives import objectives_of, weighted
from fusionnet.design.pareto import non_dominated
from fusionnet.design.search import Found, Judge, Judged, search
from fusionnet.design.space import Designs, FormulationSpace
from fusionnet.trained.reward import RewardModel


@pytest.fixture(scope="module")
def model(designable: Path) -> RewardModel:
    return RewardModel.load(designable)


@pytest.fixture(scope="module")
def space(model: RewardModel) -> FormulationSpace:
    return from_rows(model.run, read_rows(model.run))


@pytest.fixture(scope="module")
def context(model: RewardModel, space: FormulationSpace) -> pl.DataFrame:
    return patients(space, read_rows(model.run))[4:5]


def judge(model: RewardModel, candidates: Candidates, context: pl.DataFrame, *names: str) -> Judge:
    space = candidates.space
    objectives = objectives_of(model.run, names)
    return Judge(candidates, space.context(context), objectives, model.on_strings(space.distinct))


def grid_of(space: FormulationSpace, levels: int) -> Designs:
    """Return the designs of a grid, one after the other, with loops alone."""
    found = []
    for share in product(*[np.linspace(0, 1, levels)] * len(space.variables)):
        for material in range(space.num_materials):
            held = space.high[material] == space.low[material]
            if any(s > 0 and h for s, h in zip(share, held, strict=True)):
                continue
            values = space.values_at(np.array([material]), np.array([share]))[0]
            found += [(material, values, choice) for choice in range(len(space.choices[0]))]
    material, values, choice = zip(*found, strict=True)
    return Designs(np.array(material), np.array(values), np.array(choice)[:, None])


@pytest.mark.parametrize("block_rows", [50, 100_000])
def test_a_grid_is_searched_as_by_brute_force(
    model: RewardModel,
    space: FormulationSpace,
    context: pl.DataFrame,
    block_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(searching, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(searching, "POOL_ROWS", 10**6)
    high = space.high.copy()
    high[::2, 0] = space.low[::2, 0]  # half of the materials hold a variable at one value
    space = replace(space, high=high)
    candidates = grid(space, 3)
    found = search(judge(model, candidates, context, "ef", "-aux"), None, 0.5, 10)
    every = grid_of(space, 3)
    assert found.num_rows == candidates.num_rows == len(every.material)
    frame = space.frame(context, *every)
    scored = model.score(frame)
    assert found.is_exact

    # greedy, one by one, over all
    place = space.shares_of(every.material, every.values)
    reward = scored["reward"].to_numpy()
    taken: list[int] = []
    for row in np.argsort(-reward, kind="stable").tolist():
        near = [
            other
            for other in taken
            if every.material[other] == every.material[row]
            and every.choice[other] == every.choice[row]
            and np.abs(place[other] - place[row]).max() < 0.5
        ]
        if not near and len(taken) < 10:
            taken.append(row)
    np.testing.assert_allclose(found.top.reward, reward[taken], rtol=1e-4, atol=1e-5)
    designs = candidates.designs(found.top.cell, found.top.share)
    assert designs.material.tolist() == every.material[taken].tolist()
    np.testing.assert_allclose(designs.values, every.values[taken])
    assert designs.choice.tolist() == every.choice[taken].tolist()

    # the front, pair by pair
    values = np.stack([scored["predicted_outcome"], -scored["predicted_gappy"].to_numpy()], axis=1)
    beaten = [bool(((values >= row).all(1) & (values > row + 1e-6).any(1)).any()) for row in values]
    wanted = values[~np.array(beaten)]
    order = np.argsort(found.front_objectives[:, 0])
    spread = np.abs(values).max(0)
    for row in found.front_objectives[order]:
        assert np.abs((wanted - row) / spread).max(1).min() < 1e-4
    assert len(found.front_objectives) == pytest.approx(len(wanted), abs=1)


def test_a_seed_says_which_designs_are_judged(
    model: RewardModel,
    space: FormulationSpace,
    context: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(seed: int, block_rows: int) -> Found:
        monkeypatch.setattr(searching, "BLOCK_ROWS", block_rows)
        return search(judge(model, sequence(space, 5_000, seed), context), None, 0.5, 10)

    one, same, other = found(0, 4_000), found(0, 4_000), found(1, 4_000)
    assert np.array_equal(one.top.number, same.top.number)
    assert np.array_equal(one.top.reward, same.top.reward)
    assert np.array_equal(one.front.number, same.front.number)
    assert not np.array_equal(one.top.share, other.top.share)
    parts = found(0, 77)
    assert np.array_equal(one.top.number, parts.top.number)


def test_a_sequence_has_as_many_points_for_each_material_and_choice(
    space: FormulationSpace,
) -> None:
    candidates = sequence(space, 2_000, 0)
    blocks = list(candidates.blocks(100))
    number = np.concatenate([block.number for block in blocks])
    assert sorted(number.tolist()) == list(range(candidates.num_rows))
    assert candidates.num_rows >= 2_000
    cell = np.concatenate([block.cell for block in blocks])
    assert set(np.bincount(cell)) == {candidates.num_points}
    share = np.concatenate([block.share for block in blocks])
    space.check(candidates.designs(cell, share))
    assert max(len(block.number) for block in blocks) <= max(100, candidates.num_cells)


def test_what_is_judged_again_is_shown(
    model: RewardModel, designable: Path, space: FormulationSpace, context: pl.DataFrame
) -> None:
    candidates = sequence(space, 3_000, 0)
    rounded = RewardModel.load(designable, precision="bf16")
    exact = judge(model, candidates, context)
    found = search(judge(rounded, candidates, context), exact, 0.5, 5)
    again = exact(found.top.cell, found.top.share)
    np.testing.assert_allclose(found.top.reward, again.reward, rtol=1e-5, atol=1e-6)
    assert (np.diff(found.top.reward) <= 0).all()
    judged = exact(found.front.cell, found.front.share)
    np.testing.assert_allclose(found.front_objectives, judged.objectives, rtol=1e-5, atol=1e-6)
    assert non_dominated(found.front_objectives).all()


class Rounded(Judge):
    """A judge that rounds, so that much is equal to it."""

    def __call__(self, *designs: np.ndarray) -> Judged:
        return Judged(*(np.round(each) for each in super().__call__(*designs)))


def test_a_rounded_front_is_compared_again(
    model: RewardModel, space: FormulationSpace, context: pl.DataFrame
) -> None:
    exact = judge(model, sequence(space, 3_000, 0), context, "ef", "-aux")
    found = search(Rounded(**vars(exact)), exact, 0.5, 5)
    assert non_dominated(found.front_objectives).all()


def test_too_few_or_too_many_candidates_are_refused(space: FormulationSpace) -> None:
    for number in (10, 10**13):
        with pytest.raises(DesignError, match="--candidates must be from"):
            sequence(space, number, 0)
    with pytest.raises(DesignError, match="2 levels or more"):
        grid(space, 1)
    with pytest.raises(DesignError, match="fewer levels"):
        grid(space, 10**5)


def test_objectives_have_the_sides_of_the_reward(model: RewardModel) -> None:
    def sides(*names: str) -> list[tuple[str, bool]]:
        return [(each.task.name, each.more_is_better) for each in objectives_of(model.run, names)]

    assert sides() == [("ef", True), ("opt", True)]
    assert sides("aux", "ef") == [("aux", False), ("ef", True)]  # a penalty where it is above
    assert sides("-ef", "+aux") == [("ef", False), ("aux", True)]
    for names, message in ((["other"], "no trained task"), (["ef", "-ef"], "each once")):
        with pytest.raises(ConfigError, match=message):
            objectives_of(model.run, names)


def test_weights_replace_those_of_the_terms(model: RewardModel) -> None:
    run = weighted(model.run, {"ef": -2.0})
    assert [term.weight for term in run.reward.terms] == [-2.0, 0.3]
    assert objectives_of(run)[0].more_is_better is False
    for weights, message in (
        ({"aux": 1.0}, "no term of the reward reads"),
        ({"ef": float("nan")}, "must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            weighted(model.run, weights)
