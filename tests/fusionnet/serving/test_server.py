"""The command as a process: it answers over a socket, and SIGTERM ends it in order."""

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Fork, Forks, wait_until
from shared_fixtures import tiny_frame

from fusionnet.trained.reward import RewardModel

pytestmark = pytest.mark.slow
FEATURES = ["smiles", "other", "kind", "x0", "x1", "x2"]
NUM_CLIENTS = 8


@pytest.fixture
def served(forks: Forks, repository: Path, reward_model: RewardModel) -> Iterator[tuple[Fork, int]]:
    """The command's process, ready, and its port."""
    script = repository / "jobs" / "serve.py"
    words = ("--run", reward_model.run.folder, "--port", 0, "--max-body-mb", 1)
    fork = forks.start(script, *words)
    wait_until(lambda: "is served at" in fork.out.read_text(), fork)
    found = re.search(r"http://127.0.0.1:(\d+);", fork.out.read_text())
    assert found
    yield fork, int(found[1])
    if fork.is_alive:
        fork.kill()


def ask(port: int, path: str, body: Any) -> tuple[int, Any]:
    """Return status and answer of a body, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_it_answers_many_at_once_and_ends_in_order(
    served: tuple[Fork, int], reward_model: RewardModel
) -> None:
    fork, port = served
    frames = [tiny_frame(size, seed=size).select(FEATURES) for size in range(1, NUM_CLIENTS + 1)]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        bodies = [{"rows": frame.to_dicts()} for frame in frames]
        found = list(pool.map(lambda body: ask(port, "/predict", body), bodies * 4))
    for number, (status, answer) in enumerate(found):
        assert status == 200
        expected = reward_model.predict(frames[number % NUM_CLIENTS])["predicted_outcome"]
        told = [row["predicted_outcome"] for row in answer["rows"]]
        np.testing.assert_allclose(told, expected, rtol=1e-6, atol=1e-6)
    status, answer = ask(port, "/predict", b" " * (3 << 20))
    assert (status, answer["error"]) == (413, "TooLargeError")

    half_sent = [begun(port, bodies[0]) for _ in range(3)]
    wait_until(lambda: health(port)["under_way"] == 3, fork)
    os.kill(fork.process.pid, signal.SIGTERM)
    wait_until(lambda: "after the requests that have arrived" in fork.err.read_text(), fork)
    for connection, rest in half_sent:  # which had arrived, though not to their ends
        connection.send(rest)
        assert connection.getresponse().status == 200
        connection.close()
    done = fork.wait(30)
    assert done.code == 143
    assert "stopped by SIGTERM; all requests that had arrived were answered" in done.err
    assert done.err.count("POST /predict 200") == 4 * NUM_CLIENTS + 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def health(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def begun(port: int, body: Any) -> tuple[http.client.HTTPConnection, bytes]:
    """Return a connection on which half a body was sent, and the other half."""
    content = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(content)))
    half = len(content) // 2
    connection.endheaders(content[:half])
    return connection, content[half:]
