"""Answers over HTTP are the model's own."""

import json

import numpy as np
import polars as pl
import pytest
from shared_fixtures import TINY_STRINGS, tiny_frame
from starlette.testclient import TestClient

from fusionnet.trained.reward import RewardModel

FEATURES = ["smiles", "other", "kind", "x0", "x1", "x2"]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def asked(num_rows: int, seed: int = 1) -> pl.DataFrame:
    return tiny_frame(num_rows, seed=seed).select(FEATURES)


def test_predictions_are_the_models_own(client: TestClient, reward_model: RewardModel) -> None:
    frame = asked(7)
    found = client.post("/predict", json={"rows": frame.to_dicts()})
    assert found.status_code == 200, found.text
    expected = reward_model.predict(frame)
    rows = found.json()["rows"]
    assert list(rows[0]) == expected.columns
    for name in ("predicted_outcome", "predicted_good", "predicted_gappy"):
        np.testing.assert_allclose([row[name] for row in rows], expected[name], **CLOSE)
    for name in ("known", "outside", "reason"):
        assert [row[name] for row in rows] == expected[name].to_list()


def test_columns_are_answered_as_columns(client: TestClient) -> None:
    frame = asked(5)
    rows = client.post("/predict", json={"rows": frame.to_dicts()}).json()["rows"]
    columns = frame.to_dict(as_series=False)
    found = client.post("/predict", json={"columns": columns}).json()
    assert "rows" not in found
    assert found["columns"] == {name: [row[name] for row in rows] for name in rows[0]}


def test_rewards_are_the_models_own(client: TestClient, reward_model: RewardModel) -> None:
    frame = asked(40)
    found = client.post("/reward", json={"rows": frame.to_dicts()}).json()["rows"]
    rewards = [row["reward"] for row in found]
    np.testing.assert_allclose(rewards, reward_model.reward(frame).numpy(), **CLOSE)
    assert len(set(rewards)) > 1
    parts = ("reward_ef", "reward_opt", "penalty_aux")
    assert list(found[0]) == ["reward", *parts, "known", "outside", "reason"]
    for row in found:
        first, second, penalty = (row[name] for name in parts)
        assert row["reward"] == pytest.approx(first + second - penalty, rel=1e-5, abs=1e-5)
    assert {row["penalty_aux"] for row in found} == {0.0, 2.0}


def test_a_reward_may_refuse_what_training_never_saw(client: TestClient) -> None:
    rows = asked(3).to_dicts()
    rows[2]["smiles"] = "[*]CCCC[*]"
    refused = client.post("/reward", json={"rows": rows, "unseen": "refuse"})
    assert refused.status_code == 422
    assert "reward.unseen" in refused.text
    assert "row 2" in refused.text
    body = {"rows": rows, "unseen": "refuse", "on_invalid": "skip"}
    skipped = client.post("/reward", json=body).json()["rows"]
    assert [row["reward"] is None for row in skipped] == [False, False, True]
    flagged = client.post("/reward", json={"rows": rows, "unseen": "flag"}).json()["rows"]
    assert [row["known"] for row in flagged] == [True, True, False]


def test_no_rows_have_no_answers(client: TestClient) -> None:
    assert client.post("/predict", json={"rows": []}).json()["rows"] == []
    columns = client.post("/predict", json={"columns": {}}).json()["columns"]
    assert columns
    assert all(cells == [] for cells in columns.values())


def test_the_example_of_the_schema_can_be_sent_back(client: TestClient) -> None:
    example = client.get("/schema").json()["example"]
    for path in ("/predict", "/reward"):
        (row,) = client.post(path, json=example).json()["rows"]
        assert row["known"] is True
        assert row["outside"] is False


def test_columns_that_a_prediction_does_not_read_are_left_aside(client: TestClient) -> None:
    frame = tiny_frame(3, seed=2)
    assert {"patient", "outcome", "real"} < set(frame.columns)
    alone = client.post("/predict", json={"rows": frame.select(FEATURES).to_dicts()})
    assert client.post("/predict", json={"rows": frame.to_dicts()}).json() == alone.json()


def test_integers_and_floats_of_one_value_are_the_same(client: TestClient) -> None:
    (row,) = asked(1).to_dicts()
    found = [
        client.post("/predict", json={"rows": [row | {"x1": value}]}).json()
        for value in (50, 50.0, 5e1)
    ]
    assert "rows" in found[0]
    assert all(each == found[0] for each in found)


def test_rows_that_break_a_rule_are_null_where_they_are_to_be_skipped(client: TestClient) -> None:
    rows = asked(3).to_dicts()
    rows[1]["x1"] = 900
    body = {"rows": rows, "on_invalid": "skip"}
    for path, name in (("/predict", "predicted_outcome"), ("/reward", "reward")):
        found = client.post(path, json=body).json()["rows"]
        assert [row[name] is None for row in found] == [False, True, False]
        assert "above 100" in found[1]["reason"]


def test_a_new_string_is_predicted_and_said_to_be_new(
    client: TestClient, reward_model: RewardModel
) -> None:
    frame = asked(2).with_columns(smiles=pl.lit("[*]CCCC[*]"))
    assert "[*]CCCC[*]" not in TINY_STRINGS
    found = client.post("/predict", json={"rows": frame.to_dicts()}).json()["rows"]
    assert [row["known"] for row in found] == [False, False]
    expected = reward_model.predict(frame)["predicted_outcome"]
    np.testing.assert_allclose([row["predicted_outcome"] for row in found], expected, **CLOSE)


@pytest.mark.parametrize("separator", [(", ", ": "), (",", ":"), (" ,\n", "\t: ")])
def test_white_space_means_nothing(client: TestClient, separator: tuple[str, str]) -> None:
    body = json.dumps({"rows": asked(2).to_dicts()}, separators=separator)
    found = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert found.json() == client.post("/predict", json=json.loads(body)).json()
