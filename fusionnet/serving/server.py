"""The service as a process: one web server, one model, until it is told to stop.

SIGTERM and Ctrl-C end it in order: it takes no new connections, answers what has arrived, and
ends; a second signal ends it at once.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

from fusionnet.serving.address import url_of
from fusionnet.serving.app import make_app
from fusionnet.serving.limits import Limits
from fusionnet.serving.service import Service
from fusionnet.serving.told import start_log
from fusionnet.stopping import at_checkpoints, is_asked, stopped
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun

_LAST_ANSWERS_S = 30  # after which a client that neither sends nor reads is given up


class _Server(uvicorn.Server):
    """uvicorn's server, which hears of signals from `fusionnet.stopping` as all commands do."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; asked ten times a second."""
        return await super().on_tick(counter) or is_asked()


def serve(run: Path, listener: socket.socket, limits: Limits, num_threads: int) -> None:
    """Serve a run on a bound socket; raises Stopped when told to, and what loading it raised."""
    start_log()

    def load() -> RewardModel:
        torch.set_num_threads(num_threads)  # of the thread that this is, for OpenMP
        return RewardModel.load(run)

    def ready(loaded: TrainedRun) -> None:
        url = url_of(listener)
        which = f"{loaded.name}, epoch {loaded.epoch}"
        print(f"{which} is served at {url}; {url}/docs says what can be asked", flush=True)

    def failed() -> None:
        server.should_exit = True

    service = Service(load, limits, failed, ready)
    server = _Server(_config(service, limits))
    with at_checkpoints("the requests that have arrived"):
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    if is_asked():
        raise stopped("all requests that had arrived were answered")


def _config(service: Service, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(service),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # it would log query strings
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
