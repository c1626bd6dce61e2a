"""The endpoints, as an ASGI application.

It answers from the first moment, with status 503 until the model is loaded. Whatever is wrong with
a request is an error by name (`refusals`); what is wrong with us is status 500, with the place and
the type in the log. An answer never names a path of the server, and the log never a value of a row.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedcache.errors import UserError
from embedcache.text import count_of
from fusionnet.serving.answers import answers
from fusionnet.serving.batching import Batcher, Owner
from fusionnet.serving.body import Admission, parsed, read_body
from fusionnet.serving.described import identity_of, run_description, schema_of, versions
from fusionnet.serving.designs import Designer
from fusionnet.serving.limits import Limits
from fusionnet.serving.openapi import openapi_of
from fusionnet.serving.page import page_of
from fusionnet.serving.questions import OPTIONS, Kind, Question, question_of
from fusionnet.serving.records import KnownColumns
from fusionnet.serving.refusals import (
    RETRY_AFTER,
    BrokenOffError,
    InternalError,
    MethodError,
    NoSuchPathError,
    NotReadyError,
    RequestError,
    error_json,
    status_of,
)
from fusionnet.serving.told import told_error
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun

_LOG = logging.getLogger("fusionnet.serving")
_JSON = "application/json"
_PLAIN = {"X-Content-Type-Options": "nosniff"}
_OF_STATUS: dict[int, type[RequestError]] = {404: NoSuchPathError, 405: MethodError}
PARSED_AT_ONCE_BYTES = 64 << 10  # larger bodies are parsed in a thread, while others are answered
ROWS_OF_CALL = "num_rows"  # a key of a request's scope, for the log


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
    return Served(model, known, _as_json(schema), _as_json(openapi), *page_of(schema, openapi))


def make_app(service: Service) -> ASGIApp:
    """Return the application."""

    async def refused(request: Request, error: Exception) -> Response:
        return _refusal(error, service.run)

    routes = [
        Route("/health", _health, methods=["GET"]),
        Route("/schema", _schema, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/docs", _docs, methods=["GET"]),
        *(Route(f"/{kind}", _asking(kind), methods=["POST"]) for kind in OPTIONS),
        Route("/design", _design, methods=["POST"]),
    ]
    kinds: tuple[type[Exception], ...] = (UserError, HTTPException, ClientDisconnect, Exception)
    app = Starlette(
        routes=routes,
        exception_handlers=dict.fromkeys(kinds, refused),
        lifespan=service.lifespan,
    )
    app.state.service = service
    return _Logged(app, frozenset(route.path for route in routes))


def _service(request: Request) -> Service:
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


def _asking(kind: Kind) -> Callable[[Request], object]:
    """Return the endpoint of a kind of question."""

    async def endpoint(request: Request) -> Response:
        service = _service(request)
        _, batcher = service.ready()
        with service.admission.call() as holding:
            body = await read_body(request, service.limits, holding)
            question = await service.question(kind, body)
            request.scope[ROWS_OF_CALL] = question.num_rows
            answer = await batcher.ask(question)
        return Response(answer.body, media_type=_JSON, headers=_PLAIN)

    return endpoint


async def _design(request: Request) -> Response:
    service = _service(request)
    service.ready()
    designer = service.designer
    assert designer is not None, "it is there since the service is ready"
    with service.admission.call() as holding:
        if designer.is_busy:
            raise service.admission.busy("it searches designs for another call")
        body = await read_body(request, service.limits, holding)
        found = await designer.ask(parsed(body))
        if isinstance(found, UserError):
            raise found
        if isinstance(found, BaseException):
            _LOG.error("a search for designs failed:\n%s", told_error(found))
            raise InternalError("the service failed to answer; its log says where")
        request.scope[ROWS_OF_CALL] = found.num_rows
    return Response(found.body, media_type=_JSON, headers=_PLAIN)


async def _health(request: Request) -> Response:
    service = _service(request)
    told = {"status": "loading", "versions": versions(), "uptime_s": round(service.uptime_s, 1)}
    if service.served is None or service.batcher is None:
        headers = {**_PLAIN, RETRY_AFTER: str(service.limits.retry_s)}
        return Response(_as_json(told), 503, headers, _JSON)
    counts = service.batcher.counts
    run = service.served.model.run
    told |= {"status": "ready", **run_description(run), "identity": identity_of(run)}
    told |= {"answered": counts.calls, "rows": counts.rows, "passes": counts.passes}
    told |= {"under_way": service.admission.num_calls}
    return Response(_as_json(told), media_type=_JSON, headers=_PLAIN)


async def _schema(request: Request) -> Response:
    served, _ = _service(request).ready()
    return Response(served.schema, media_type=_JSON, headers=_PLAIN)


async def _openapi(request: Request) -> Response:
    served, _ = _service(request).ready()
    return Response(served.openapi, media_type=_JSON, headers=_PLAIN)


async def _docs(request: Request) -> Response:
    served, _ = _service(request).ready()
    return HTMLResponse(served.page, headers=served.page_headers)


def _refusal(error: Exception, run: TrainedRun | None) -> Response:
    """Return an error as an answer."""
    headers = dict(_PLAIN)
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
        error = _OF_STATUS.get(error.status_code, RequestError)(
            f"{error.detail}; see /docs for what can be asked"
        )
    if isinstance(error, ClientDisconnect):
        error = BrokenOffError("the connection ended before the body did")
    if isinstance(error, RequestError):
        headers |= error.headers
    if not isinstance(error, UserError):  # the log has its place and its type
        error = InternalError("the service failed to answer; its log says where")
    return Response(error_json(error, run), status_of(error), headers, _JSON)


def _as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


class _Logged:
    """The application, with a line in the log for each request: what, how it ended, how long.

    Of paths that it does not have it logs nothing, since anything may be written in one.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), [0]

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "(another path)"
            rows = f" {count_of(scope[ROWS_OF_CALL], 'row')}" if ROWS_OF_CALL in scope else ""
            elapsed_ms = 1e3 * (time.perf_counter() - started)
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "(other)"
            _LOG.info("%s %s %d%s %.1f ms", method, path, status[0], rows, elapsed_ms)
