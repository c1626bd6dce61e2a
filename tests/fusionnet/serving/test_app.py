"""The service before, while and after its model is loaded, and what it says of itself."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedcache.errors import RunError
from fusionnet.serving.app import make_app
from fusionnet.serving.limits import Limits
from fusionnet.serving.openapi import openapi_of
from fusionnet.serving.page import page_of
from fusionnet.serving.records import KnownColumns
from fusionnet.serving.service import Service
from fusionnet.trained.reward import RewardModel

Ready = Callable[[TestClient], None]


def test_it_says_that_it_is_loading_until_it_is_ready(
    reward_model: RewardModel, ready: Ready
) -> None:
    loaded = threading.Event()

    def load() -> RewardModel:
        assert loaded.wait(30)
        return reward_model

    with TestClient(make_app(Service(load, Limits()))) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        asked = client.post("/predict", json={"rows": []})
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "1")
        assert asked.json()["error"] == "NotReadyError"
        assert client.get("/docs").status_code == 503
        loaded.set()
        ready(client)
        assert client.post("/predict", json={"rows": []}).status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_service() -> None:
    failed = threading.Event()

    def load() -> RewardModel:
        raise RunError("the run is damaged")

    service = Service(load, Limits(), failed.set)
    with TestClient(make_app(service)) as client:
        assert failed.wait(30)
        assert client.get("/health").status_code == 503
    assert isinstance(service.failure, RunError)


def test_health_says_which_run_and_what_was_answered(
    client: TestClient, reward_model: RewardModel
) -> None:
    before = client.get("/health").json()
    example = client.get("/schema").json()["example"]
    client.post("/predict", json={"rows": example["rows"] * 3})
    health = client.get("/health").json()
    run = reward_model.run
    assert (health["run"], health["run_id"], health["epoch"]) == (run.name, run.run_id, run.epoch)
    assert health["identity"]["table"] == run.identity["table"]
    assert not any(name.startswith("data.") for name in health["identity"])
    counted = [health[key] - before[key] for key in ("answered", "rows", "passes")]
    assert counted == [1, 3, 1]
    assert health["uptime_s"] >= before["uptime_s"] >= 0
    assert str(run.folder) not in json.dumps(health)


def test_the_schema_has_the_columns_with_their_bounds_and_units(
    client: TestClient, reward_model: RewardModel
) -> None:
    schema = client.get("/schema").json()
    run = reward_model.run
    assert [column["column"] for column in schema["strings"]] == ["smiles", "other"]
    assert schema["strings"][0]["known"] == list(run.strings["polymer"])
    numbers = {column["column"]: column for column in schema["numeric"]}
    assert (numbers["x1"]["low"], numbers["x1"]["high"]) == (0, 100)
    assert numbers["x0"]["low"] is None
    assert numbers["x2"]["train_high"] == run.scaling.high[2]
    (category,) = schema["categories"]
    assert category["values"] == ["a", "b", "c"]
    assert [task["column"] for task in schema["tasks"]] == ["outcome", "good", "gappy"]
    assert len(schema["reward"]["terms"]) == 2
    (row,) = schema["example"]["rows"]
    assert row["x1"] == pytest.approx(run.scaling.mean[1], rel=1e-5)  # of the train rows
    assert numbers["x2"]["train_low"] < row["x2"] < numbers["x2"]["train_high"]


def references(value: Any) -> set[str]:
    """Return all references in a document."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if "$ref" in value else set()
    return own.union(*map(references, value.values()))


def test_the_openapi_document_is_whole_and_says_what_there_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert references(document) == {
        *(f"#/components/schemas/{name}" for name in schemas),
    }
    for path, methods in document["paths"].items():
        for method in methods:
            answer = client.request(method, path, json={} if method == "post" else None)
            assert answer.status_code == (422 if method == "post" else 200), path
    row, example = schemas["Row"], client.get("/schema").json()["example"]["rows"][0]
    assert set(row["required"]) == set(row["properties"]) == set(example)
    assert row["properties"]["x1"]["maximum"] == 100
    assert row["properties"]["kind"]["enum"] == ["a", "b", "c"]
    answered = client.post("/predict", json={"rows": [example]}).json()["rows"][0]
    assert set(schemas["Prediction"]["properties"]) == set(answered)
    rewarded = client.post("/reward", json={"rows": [example]}).json()["rows"][0]
    assert set(schemas["Reward"]["properties"]) == set(rewarded)
    options = {"rows", "columns", "coverage", "uncertainty", "on_invalid"}
    assert set(schemas["predict_request"]["properties"]) == options


def test_the_page_loads_nothing_and_runs_its_own_script_alone(client: TestClient) -> None:
    answer = client.get("/docs")
    page, policy = answer.text, answer.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert not re.findall(r"@import|url\(", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page
    for name in ("smiles", "x2", "gappy"):
        assert name in page


def test_names_in_the_page_are_escaped(client: TestClient, reward_model: RewardModel) -> None:
    schema = client.get("/schema").json()
    evil = "</textarea><script>alert(1)</script>"
    schema["note"] = schema["run"] = evil
    schema["numeric"][0]["unit"] = schema["strings"][0]["column"] = evil
    schema["example"]["rows"][0][evil] = evil
    known = KnownColumns.of(reward_model.run)
    known = KnownColumns((evil, *known.read[1:]), known.numeric, known.unneeded)
    page, _ = page_of(schema, openapi_of(schema, known))
    assert evil not in page
    assert page.count("<script>") == page.count("</textarea>") == 1
