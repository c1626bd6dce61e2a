"""What a request may not be is refused by name, with all that is wrong, and nothing leaks."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from shared_fixtures import tiny_frame
from starlette.testclient import TestClient

from fusionnet.serving.app import make_app
from fusionnet.serving.body import Admission
from fusionnet.serving.limits import Limits
from fusionnet.serving.refusals import BusyError, without_paths
from fusionnet.serving.service import Service
from fusionnet.trained.reward import RewardModel

Ready = Callable[[TestClient], None]
JSON = {"content-type": "application/json"}
FEATURES = ["smiles", "other", "kind", "x0", "x1", "x2"]


def rows_of(num_rows: int) -> list[dict[str, Any]]:
    return tiny_frame(num_rows, seed=3).select(FEATURES).to_dicts()


def refused(client: TestClient, body: str | bytes, status: int = 422) -> dict[str, Any]:
    """Return the error that a body is answered with."""
    answer = client.post("/predict", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"error", "message", "violations"}
    return found


def refused_rows(client: TestClient, rows: Any, **options: Any) -> dict[str, Any]:
    return refused(client, json.dumps({"rows": rows, **options}))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "is no JSON: Expecting value (line 1, column 1)"),
        ('{"rows": [}', "is no JSON"),
        ("[]", "is a JSON list, and should be an object"),
        ("7", "is a JSON number"),
        ('{"rows": [{"x0": NaN}]}', "NaN, which is no JSON"),
        ('{"rows": [{"x0": -Infinity}]}', "-Infinity, which is no JSON"),
        ('{"rows": [], "rows": []}', "the key 'rows' twice"),
        ('{"rows": [{"x0": 1, "x1": 2, "x0": 1}]}', "the key 'x0' twice"),
        ('{"rows": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"rows": [{"x0": ' + "9" * 5000 + "}]}", "an integer of thousands of digits"),
        (b'{"rows": [{"smiles": "\xff"}]}', "is not UTF-8 (at byte 22)"),
        ('{"rows": []}'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_what_is_no_json_is_refused(
    reward_model: RewardModel, ready: Ready, body: str | bytes, said: str
) -> None:
    large = Limits(body_bytes=1 << 20)
    with TestClient(make_app(Service(lambda: reward_model, large))) as other:
        ready(other)
        found = refused(other, body)
    assert found["error"] == "NoJsonError"
    assert said in found["message"]


def test_all_violations_of_rows_are_told_at_once_with_their_numbers(client: TestClient) -> None:
    rows = rows_of(6)
    rows[1]["x1"] = 250
    rows[3]["x0"] = None
    rows[4]["smiles"] = "no polymer"
    rows[5]["kind"] = "d"
    found = refused_rows(client, rows)
    assert found["error"] == "TableError"
    assert "in 4 ways" in found["message"]
    told = "\n".join(found["violations"])
    for line in (
        "numeric column 'x1': above 100: 1 row (250); divided by 10",
        "numeric column 'x0': null or NaN: 1 row; row 3",
        "'no polymer' is not a psmiles",
        "'d'",
    ):
        assert line in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x0": [1]}, "column 'x0': a list or an object in a cell: 1 row; row 1"),
        ({"x0": {"y": 1}}, "column 'x0': a list or an object in a cell: 1 row; row 1"),
        ({"x0": "1.5"}, "column 'x0': text among numbers: 1 row; row 1"),
        ({"x0": 10**400}, "column 'x0': beyond all numbers: 1 row; row 1"),
        ({"smiles": "[*]C\ud800[*]"}, "column 'smiles': characters that no text has: 1 row; row 1"),
        (
            {"smiles": "C" * 201},
            "column 'smiles': a text of more than 200 characters: 1 row; row 1",
        ),
        ({"smiles": 5}, "column 'smiles': text among numbers: 2 rows; rows 0, 2"),
        ({"simles": "C"}, "unknown column 'simles'; did you mean 'smiles'?"),
        ({"zzzz": 1}, "unknown column 'zzzz'; the run reads smiles, other"),
    ],
)
def test_cells_and_columns_that_are_wrong_are_named(
    client: TestClient, changes: dict[str, Any], said: str
) -> None:
    rows = rows_of(3)
    rows[1] |= changes
    found = refused_rows(client, rows)
    assert found["error"] == "RequestError"
    assert any(said in line for line in found["violations"]), found


def test_a_number_that_json_writes_and_no_float_holds_is_refused(client: TestClient) -> None:
    row = json.dumps(rows_of(1)[0]).replace('"x0": ', '"x0": 1e400, "gone": ')
    found = refused(client, f'{{"rows": [{row}]}}')
    assert "column 'x0': beyond all numbers: 1 row; row 0" in found["violations"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "it has neither"),
        ({"rows": [], "columns": {}}, "it has both"),
        ({"rows": {}}, "rows is to be a list of objects"),
        ({"rows": [1]}, "rows is to be a list of objects"),
        ({"columns": []}, "columns is to be an object of lists"),
        ({"columns": {"x0": [1], "x1": [1, 2]}}, "the columns have different lengths"),
        ({"rows": [{}]}, "the rows have no column that the run reads"),
        ({"rows": [], "coverge": 0.9}, "the options are wrong"),
        ({"rows": [], "coverage": True}, "the options are wrong"),
        ({"rows": [], "coverage": 0.905}, "coverage must be one of 0.50"),
        ({"rows": [], "on_invalid": "drop"}, "the options are wrong"),
        ({"rows": [], "uncertainty": "yes"}, "the options are wrong"),
    ],
)
def test_bodies_that_ask_for_something_else_are_refused(
    client: TestClient, body: dict[str, Any], said: str
) -> None:
    assert said in refused(client, json.dumps(body))["message"]


def test_what_the_run_has_not_learnt_is_refused(client: TestClient) -> None:
    said = refused_rows(client, rows_of(1), coverage=0.9)["message"]
    assert said.startswith("this run has no intervals; ask without coverage")
    said = refused_rows(client, rows_of(1), uncertainty=True)["message"]
    assert said.startswith("this run has learnt no uncertainty; ask without it")
    answer = client.post("/reward", json={"rows": rows_of(1), "pessimism": 1.0})
    assert answer.status_code == 422
    assert answer.json()["message"].startswith("this run has no doubt about its rewards")


def test_more_rows_bytes_or_new_strings_than_allowed_are_refused(client: TestClient) -> None:
    assert "51 rows, and one may have 50" in _too_large(client, {"rows": [{}] * 51})
    assert "51 rows" in _too_large(client, {"columns": {"x0": [1] * 51}})
    assert "more than 40,000 bytes" in _too_large(client, {"rows": ["x" * 40_000]})
    rows = rows_of(5)
    for number, row in enumerate(rows):
        row["smiles"] = f"[*]{'C' * (number + 3)}[*]"
    assert "5 strings that the run was not trained on" in _too_large(client, {"rows": rows})


def _too_large(client: TestClient, body: dict[str, Any]) -> str:
    found = refused(client, json.dumps(body), 413)
    assert found["error"] == "TooLargeError"
    return str(found["message"])


def test_a_body_is_refused_before_the_rest_of_it_is_read(client: TestClient) -> None:
    sent: list[int] = []

    def parts() -> Iterator[bytes]:  # chunked: no length is announced
        for _ in range(1000):
            sent.append(10_000)
            yield b" " * 10_000

    app = client.app
    received: list[dict[str, Any]] = []

    async def call(announced: bytes) -> int:
        """Return how many parts the application took, of a body that says to be small."""
        given, taken = parts(), [0]

        async def receive() -> dict[str, Any]:
            taken[0] += 1
            return {"type": "http.request", "body": next(given), "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            received.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", announced)]
        await app(_scope(headers, client), receive, send)  # type: ignore[arg-type]
        return taken[0]

    taken = client.portal.call(call, b"10")  # type: ignore[union-attr]
    assert taken == 5  # of 1,000: the fifth passes 40,000 bytes
    assert received[0]["status"] == 413
    assert client.portal.call(call, b"9999999") == 0  # type: ignore[union-attr]


def _scope(headers: list[tuple[bytes, bytes]], client: TestClient) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": headers,
        "query_string": b"",
        "app_state": client.app_state,
    }


def test_a_body_that_never_comes_is_given_up(reward_model: RewardModel, ready: Ready) -> None:
    service = Service(lambda: reward_model, Limits(body_s=0.05))
    with TestClient(make_app(service)) as client:
        ready(client)
        received: list[dict[str, Any]] = []

        async def call() -> None:
            async def receive() -> dict[str, Any]:
                await anyio.sleep_forever()
                raise AssertionError

            async def send(message: dict[str, Any]) -> None:
                received.append(message)

            headers = [(b"content-type", b"application/json")]
            await client.app(_scope(headers, client), receive, send)  # type: ignore[arg-type]

        client.portal.call(call)  # type: ignore[union-attr]
    assert received[0]["status"] == 408
    assert service.admission.num_calls == 0


def test_a_client_that_leaves_is_no_defect(
    client: TestClient, log: pytest.LogCaptureFixture
) -> None:
    async def call() -> None:
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive() -> dict[str, Any]:
            return next(parts, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        await client.app(_scope(headers, client), receive, send)  # type: ignore[arg-type]

    client.portal.call(call)  # type: ignore[union-attr]
    assert "POST /predict 400" in log.text
    assert "Error" not in log.text
    assert client.get("/health").json()["under_way"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/csv"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_kinds_of_body_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/predict", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"] == "MediaTypeError"


def test_a_charset_beside_the_type_is_no_other_type(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = json.dumps({"rows": rows_of(1)})
    assert client.post("/predict", content=body, headers=headers).status_code == 200


def test_paths_and_methods_that_there_are_not(client: TestClient) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/predict").json()["error"] == "MethodError"
    assert client.post("/patients/P01").json()["error"] == "NoSuchPathError"


def test_too_many_calls_and_bytes_are_told_to_come_again() -> None:
    admission = Admission(Limits(calls=2, body_bytes=10, waiting_bodies=2))
    with admission.call() as first, admission.call():
        first.add(20)
        with pytest.raises(BusyError) as busy:
            first.add(1)
        assert busy.value.headers == {"Retry-After": "1"}
        with pytest.raises(BusyError, match="2 calls are being answered"), admission.call():
            pass
    assert (admission.num_calls, admission.num_bytes) == (0, 0)


def test_a_path_of_the_server_is_no_part_of_a_message(reward_model: RewardModel) -> None:
    run = reward_model.run
    for text in (f"{run.folder}/tiny_best.pt is gone", "no file /etc/hosts.d/x", run.data.files[0]):
        found = without_paths(f"says: {text}; and more", run)
        assert "/" not in found.replace("secret folder/tiny_best.pt", "")
        assert found.endswith("; and more")
    smiles = "e.g. '/C=C/F' or C/C=C\\F"
    assert without_paths(smiles, run) == smiles


def test_a_defect_is_an_answer_without_its_text_and_a_log_without_values(
    client: TestClient,
    reward_model: RewardModel,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "on /srv/secret the patient {} is 81 years old".format("4711")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(told)

    monkeypatch.setattr(type(reward_model), "batches", broken)
    answer = client.post("/predict", json={"rows": rows_of(2)})
    assert answer.status_code == 500
    assert answer.json()["error"] == "InternalError"
    for text in (answer.text, log.text):
        assert "4711" not in text
        assert "81 years" not in text
    assert "RuntimeError" in log.text
    assert "POST /predict 500 2 rows" in log.text


def test_the_log_has_no_values_whatever_is_asked(
    client: TestClient, log: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(2)
    rows[0]["x1"] = 4711
    rows[1]["smiles"] = "[*]CCCCCCCCCC[*]"
    client.post("/predict?patient=4711", json={"rows": rows})
    client.post("/predict/4711", json={"rows": rows})
    client.post("/predict", content=b'{"rows": [4711', headers=JSON)
    assert log.text.count("POST /predict 422") == 2
    assert "4711" not in log.text
    assert "CCCC" not in log.text
