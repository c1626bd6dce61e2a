"""The body of a request: read within its limits, then strictly as JSON.

Strictly, since what one program reads another way than the next is a mistake in waiting: NaN and
Infinity are no JSON, of a key given twice readers take the first or the last, and other encodings
than UTF-8 are guessed.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from starlette.requests import Request

from fusionnet.serving.limits import Limits
from fusionnet.serving.refusals import (
    RETRY_AFTER,
    BusyError,
    MediaTypeError,
    NoJsonError,
    SlowBodyError,
    TooLargeError,
)

_CLOSE = {"Connection": "close"}  # what is still to come of the body is not read


class Admission:
    """How many calls are under way, and the bytes of their bodies; of one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.num_calls = 0
        self.num_bytes = 0

    @contextmanager
    def call(self) -> Iterator["Holding"]:
        """Count a call while it lasts; raises BusyError where there are too many."""
        if self.num_calls >= self._limits.calls:
            raise self.busy(f"{self.num_calls} calls are being answered")
        self.num_calls += 1
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.num_calls -= 1
            holding.release()

    def busy(self, why: str) -> BusyError:
        """Return what tells a client to come again."""
        retry_s = self._limits.retry_s
        return BusyError(
            f"the service is busy: {why}; send the request again in {retry_s} s",
            headers={RETRY_AFTER: str(retry_s)},
        )

    def hold(self, num_bytes: int) -> None:
        """Count bytes that came; raises BusyError where memory has no room for them."""
        if self.num_bytes + num_bytes > self._limits.held_bytes:
            raise self.busy("the bodies of other calls fill its memory")
        self.num_bytes += num_bytes


class Holding:
    """The bytes that one call holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that came."""
        self._admission.hold(num_bytes)
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Give back all that was counted: the body is no longer needed."""
        self._admission.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_body(request: Request, limits: Limits, holding: Holding) -> bytes:
    """Return the body of a request.

    Raises MediaTypeError, SlowBodyError, BusyError, and TooLargeError as soon as more bytes came
    than may come, whatever the header promised.
    """
    _check_headers(request, limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                holding.add(len(part))
                parts.append(part)
    except TimeoutError:
        raise SlowBodyError(
            f"the body did not arrive within {limits.body_s:g} s; send smaller ones", headers=_CLOSE
        ) from None
    return b"".join(parts)


def _check_headers(request: Request, limits: Limits) -> None:
    """Refuse a body that announces itself as one that is not read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeError(
            f"the content type is {kind or 'not given'!r:.80}; send JSON, with the header"
            " Content-Type: application/json",
            headers=_CLOSE,
        )
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed != "identity":
        raise MediaTypeError(
            f"the body is compressed ({packed:.20}); send it as it is", headers=_CLOSE
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise _too_large(limits)


def _too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {limits.body_bytes:,} bytes; send its rows in several requests",
        headers=_CLOSE,
    )


def parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds; raises NoJsonError, which quotes nothing of it."""
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=_each_key_once, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise NoJsonError(f"the body is not UTF-8 (at byte {error.start:,})") from None
    except RecursionError:
        raise NoJsonError("the body is nested too deeply; rows are lists of flat objects") from None
    except json.JSONDecodeError as error:
        raise NoJsonError(
            f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise NoJsonError("the body has an integer of thousands of digits") from None
    if not isinstance(found, dict):
        raise NoJsonError(
            f"the body is a JSON {_kind_of(found)}, and should be an object, such as"
            ' {"rows": [{...}, ...]}'
        )
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NoJsonError(
            f"an object has the key {name!r:.80} twice, of which programs read one or the other"
        )
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise NoJsonError(f"the body has {name}, which is no JSON; write null where there is no value")


def _kind_of(value: Any) -> str:
    names = {list: "list", str: "string", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")
