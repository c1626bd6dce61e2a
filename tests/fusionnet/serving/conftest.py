"""A made run behind the application, without a socket."""

import logging
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from fusionnet.serving.app import make_app
from fusionnet.serving.limits import Limits
from fusionnet.serving.service import Service
from fusionnet.trained.reward import RewardModel

# few of everything, so that tests reach them
LIMITS = Limits(
    rows=50, body_bytes=40_000, new_strings=4, text_characters=200, calls=64, body_s=5.0
)


@pytest.fixture(scope="session")
def reward_model(make_run, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """A run with a reward, as the service loads it."""
    terms = [{"task": "ef", "weight": 1.0}, {"task": "opt", "weight": 10.0}]
    reward = {"terms": terms, "penalties": [{"task": "aux", "above": 11.6, "penalty": 2.0}]}
    folder = make_run(tmp_path_factory.mktemp("served") / "secret folder", reward=reward)
    return RewardModel.load(folder)


Ready = Callable[[TestClient], None]


@pytest.fixture(scope="session")
def client(reward_model: RewardModel, ready: Ready) -> Iterator[TestClient]:
    """The application that serves it, loaded."""
    app = make_app(Service(lambda: reward_model, LIMITS))
    with TestClient(app, raise_server_exceptions=False) as found:
        ready(found)
        yield found


@pytest.fixture(scope="session")
def ready() -> Ready:
    """Wait until a service is ready."""

    def wait(client: TestClient) -> None:
        end = time.monotonic() + 30
        while client.get("/health").status_code != 200:
            assert time.monotonic() < end, "the model is not loaded"
            time.sleep(0.01)

    return wait


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the client's
    with caplog.at_level(logging.INFO):
        yield caplog
