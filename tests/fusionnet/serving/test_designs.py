"""Designs over HTTP are those that a search in Python finds."""

import numpy as np
import polars as pl
import pytest
from shared_fixtures import tiny_frame
from starlette.testclient import TestClient

from fusionnet.design.candidates import sequence
from fusionnet.design.deriving import from_rows, read_rows
from fusionnet.trained.reward import RewardModel

FEATURES = ["smiles", "other", "kind", "x0", "x1", "x2"]


def patient(**cells: object) -> dict[str, object]:
    return tiny_frame(1, seed=4).select(FEATURES).to_dicts()[0] | cells


def test_the_best_design_is_the_best_of_all_that_are_judged(
    client: TestClient, reward_model: RewardModel
) -> None:
    asked = {"patient": patient(), "candidates": 2000, "top": 3, "seed": 5}
    found = client.post("/design", json=asked).json()
    space = from_rows(reward_model.run, read_rows(reward_model.run))
    candidates = sequence(space, 2000, 5)
    context = pl.DataFrame([patient()])
    rewards = []
    for block in candidates.blocks(1 << 20):
        frame = space.frame(context, *candidates.designs(block.cell, block.share))
        rewards.append(reward_model.reward(frame).numpy())
    assert found["judged"] == len(np.concatenate(rewards))
    first, *others = found["designs"]
    assert first["said"]["reward"] == pytest.approx(float(np.concatenate(rewards).max()), rel=1e-5)
    assert [each["place"] for each in others] == [2, 3]
    assert all(each["said"]["reward"] <= first["said"]["reward"] for each in others)


def test_a_design_can_be_asked_about(client: TestClient) -> None:
    body = {"patient": patient(), "candidates": 1000, "top": 4}
    designs = client.post("/design", json=body).json()["designs"]
    assert len(designs) == 4
    again = client.post("/reward", json={"rows": [each["row"] for each in designs]}).json()["rows"]
    for design, row in zip(designs, again, strict=True):
        assert design["said"]["reward"] == pytest.approx(row["reward"], rel=1e-5)
        assert design["row"].keys() == set(FEATURES)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "patient: is required"),
        ({"patient": [1]}, 422, "the options are wrong"),
        ({"patient": {"x9": 1.0}}, 422, "unknown column 'x9'"),
        ({"patient": {}, "candidates": 200_001}, 413, "a request may have 200,000"),
        ({"patient": {}, "candidates": 1.5}, 422, "candidates"),
        ({"patient": {}, "candidate": 10}, 422, "did you mean 'candidates'?"),
        ({"patient": {"smiles": "C"}, "candidates": 1}, 422, "or more"),
        ({"patient": {"smiles": "C"}, "pessimism": 1.0}, 422, "no doubt about its rewards"),
    ],
)
def test_searches_that_cannot_be(
    client: TestClient, body: dict[str, object], status: int, said: str
) -> None:
    answer = client.post("/design", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.text
