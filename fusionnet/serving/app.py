"""The endpoints, as an ASGI application.

It answers from the first moment, with status 503 until the model is loaded. Whatever is wrong with
a request is an error by name (`refusals`); what is wrong with us is status 500, with the place and
the type in the log. An answer never names a path of the server, and the log never a value of a row.
"""

import logging
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedcache.errors import UserError
from embedcache.text import count_of
from fusionnet.serving.body import parsed, read_body
from fusionnet.serving.described import identity_of, run_description, versions
from fusionnet.serving.questions import OPTIONS, Kind
from fusionnet.serving.refusals import (
    RETRY_AFTER,
    BrokenOffError,
    InternalError,
    MethodError,
    NoSuchPathError,
    RequestError,
    error_json,
    status_of,
)
from fusionnet.serving.service import Service, as_json
from fusionnet.serving.told import told_error
from fusionnet.trained.run import TrainedRun

_LOG = logging.getLogger("fusionnet.serving")
_JSON = "application/json"
_PLAIN = {"X-Content-Type-Options": "nosniff"}
_OF_STATUS: dict[int, type[RequestError]] = {404: NoSuchPathError, 405: MethodError}
ROWS_OF_CALL = "num_rows"  # a key of a request's scope, for the log


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
        return Response(as_json(told), 503, headers, _JSON)
    counts = service.batcher.counts
    run = service.served.model.run
    told |= {"status": "ready", **run_description(run), "identity": identity_of(run)}
    told |= {"answered": counts.calls, "rows": counts.rows, "passes": counts.passes}
    told |= {"under_way": service.admission.num_calls}
    return Response(as_json(told), media_type=_JSON, headers=_PLAIN)


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
