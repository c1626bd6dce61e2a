"""What the endpoints share: limits, the model once it is loaded, its queue and descriptions."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from embedcache.errors import UserError
from fusionnet.serving.answers import answers
from fusionnet.serving.batching import Batcher, Owner
from fusionnet.serving.body import Admission, parsed
from fusionnet.serving.described import schema_of
from fusionnet.serving.designs import Designer
from fusionnet.serving.limits import Limits
from fusionnet.serving.openapi import openapi_of
from fusionnet.serving.page import page_of
from fusionnet.serving.questions import Kind, Question, question_of
from fusionnet.serving.records import KnownColumns
from fusionnet.serving.refusals import RETRY_AFTER, NotReadyError
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun

_LOG = logging.getLogger("fusionnet.serving")
PARSED_AT_ONCE_BYTES = 64 << 10  # larger bodies are parsed in a thread, while others are answered


class Served(NamedTuple):
    """A loaded model, and what is said of it."""

    model: RewardModel
    known: KnownColumns
    schema: bytes
    openapi: bytes
    page: str
    page_headers: dict[str, str]


class Service:
    """What the endpoints share. `load` is called once, by the thread that owns the model."""

    def __init__(
        self,
        load: Callable[[], RewardModel],
        limits: Limits,
        failed: Callable[[], None] = lambda: None,
        ready: Callable[[TrainedRun], None] = lambda run: None,
    ) -> None:
        """`failed` is called where the model cannot be loaded, `ready` when it is."""
        self.limits = limits
        self.admission = Admission(limits)
        self.failure: BaseException | None = None
        self.served: Served | None = None
        self.batcher: Batcher | None = None
        self.designer: Designer | None = None
        self._load, self._failed, self._ready = load, failed, ready
        self._owner = Owner()
        self._parsing = asyncio.Semaphore(1)  # the objects of one large body at a time
        self._started = time.monotonic()

    @property
    def run(self) -> TrainedRun | None:
        """The run, once it is loaded."""
        return None if self.served is None else self.served.model.run

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the model and answer what is asked, until the server stops."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._owner.close()
            if self.designer is not None:
                self.designer.close()

    async def _run(self) -> None:
        found = await self._owner.result(lambda: served_by(self._load(), self.limits))
        if isinstance(found, BaseException):
            self.failure = found
            self._failed()
            return
        self.served = found
        self.batcher = Batcher(found.model, self._owner, self.limits)
        self.designer = Designer(found.model, found.known, self.limits)
        self._ready(found.model.run)
        await self.batcher.run()

    def ready(self) -> tuple[Served, Batcher]:
        """Return the loaded model and its queue; raises NotReadyError before there are any."""
        if self.served is None or self.batcher is None:
            raise NotReadyError(
                "the model is still being loaded; send the request again in a moment",
                headers={RETRY_AFTER: str(self.limits.retry_s)},
            )
        return self.served, self.batcher

    async def question(self, kind: Kind, body: bytes) -> Question:
        """Return what a body asks; a large one is read in a thread, one at a time."""
        served, _ = self.ready()

        def read() -> Question:
            return question_of(kind, parsed(body), served.model, served.known, self.limits)

        if len(body) <= PARSED_AT_ONCE_BYTES:
            return read()
        async with self._parsing:
            return await run_in_threadpool(read)


def served_by(model: RewardModel, limits: Limits) -> Served:
    """Return a model with its descriptions; its example is answered once, which warms it up."""
    known = KnownColumns.of(model.run)
    schema = schema_of(model, limits)
    question = question_of("predict", dict(schema["example"]), model, known, limits)
    (answer,) = answers(model, [question])
    if isinstance(answer, UserError):
        _LOG.warning("the example of /schema is refused by the run: %s", type(answer).__name__)
    openapi = openapi_of(schema, known)
    return Served(model, known, as_json(schema), as_json(openapi), *page_of(schema, openapi))


def as_json(value: object) -> bytes:
    """Return a value as JSON, in which NaN and infinity have no place."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
