"""Requests that are refused: each error by its name and HTTP's status, and as JSON."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from embedcache.errors import (
    ConfigError,
    DesignError,
    NonFinitePredictionError,
    TableError,
    UnobservedTaskError,
    UserError,
)
from fusionnet.trained.run import TrainedRun

RETRY_AFTER = "Retry-After"
COUNTED = "rows are counted from 0"
SKIPPED = '"on_invalid": "skip" answers rows that break one with null'


class RequestError(UserError):
    """A body that is not what is asked for; `violations` are all that is wrong, one by one."""

    status = 422

    def __init__(
        self, message: str, violations: Sequence[str] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.violations = tuple(violations)
        self.headers = headers or {}


class NoJsonError(RequestError):
    """The body is no JSON, or JSON of a kind that programs read differently."""


class NoSuchPathError(RequestError):
    """The service has no such path."""

    status = 404


class MethodError(RequestError):
    """The path is for another method."""

    status = 405


class MediaTypeError(RequestError):
    """The body is of another type than JSON, or compressed."""

    status = 415


class TooLargeError(RequestError):
    """The request has more bytes, rows, strings or characters than one may have."""

    status = 413


class SlowBodyError(RequestError):
    """The body has not arrived in time."""

    status = 408


class BrokenOffError(RequestError):
    """The client left before its body was whole."""

    status = 400


class BusyError(RequestError):
    """Too much waits already."""

    status = 503


class NotReadyError(RequestError):
    """The model is still being loaded."""

    status = 503


class InternalError(RequestError):
    """A defect of ours; the log says where, and nothing of the rows."""

    status = 500


# what the rows or the options of a request cause; the rest is the service's own
_OF_THE_REQUEST = (
    TableError,
    ConfigError,
    DesignError,
    NonFinitePredictionError,
    UnobservedTaskError,
)


def status_of(error: UserError) -> int:
    """Return HTTP's status for an error."""
    if isinstance(error, RequestError):
        return error.status
    return 422 if isinstance(error, _OF_THE_REQUEST) else 500


def error_json(error: UserError, run: TrainedRun | None) -> bytes:
    """Return an error as a client is told it: name, message, violations; no path of the server."""
    violations = getattr(error, "violations", ())
    message = str(error)
    if isinstance(error, TableError) and violations:  # whose message lists them too
        ways = "1 way" if len(violations) == 1 else f"{len(violations)} ways"
        message = f"the request breaks the run's rules in {ways} ({COUNTED}; {SKIPPED})"
    told: dict[str, Any] = {
        "error": type(error).__name__,
        "message": without_paths(message, run),
        "violations": [without_paths(line, run) for line in violations],
    }
    return json.dumps(told, ensure_ascii=False).encode()


def without_paths(text: str, run: TrainedRun | None) -> str:
    """Return a message with the last part alone of each path.

    Paths are those that the run's config names, however they are written, and all that begin with
    a folder at this machine's root. A SMILES may begin with a slash too; that is none of these.
    """
    for path in _paths_of(run):
        text = text.replace(path, os.path.basename(path.rstrip("/")) or "/")
    folders = "|".join(re.escape(name) for name in sorted(os.listdir("/"), key=len, reverse=True))
    return re.sub(rf"(?<![\w/])/(?:{folders})(?:/[^\s'\",;:)]*)?", _last_part, text)


def _last_part(found: re.Match[str]) -> str:
    return os.path.basename(found[0].rstrip("/"))


def _paths_of(run: TrainedRun | None) -> list[str]:
    """Return all paths that a run's config names, and its folder, the longest first."""
    if run is None:
        return []
    named = {str(run.folder), str(run.folder.resolve()), *run.data.files}
    named |= {encoder.source for encoder in run.recipe.encoders}
    named |= {
        str(getattr(feature, "table", ""))
        for column in run.data.strings
        for feature in column.features
    }
    return sorted((each for each in named if "/" in each), key=len, reverse=True)
