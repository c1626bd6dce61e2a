"""The log: what was asked when and how it ended, and never a value of a row.

Exceptions quote what they failed on, so of a defect the log has its type and where it was raised.
"""

import logging
import sys
import traceback
from types import TracebackType

_FORMAT = "%(asctime)s %(message)s"


def told_error(error: BaseException) -> str:
    """Return where an error was raised, and its type, without its message."""
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{frames}\n{type(error).__module__}.{type(error).__qualname__}"


class _WithoutMessages(logging.Formatter):
    """Tracebacks without what the exceptions say."""

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Return an exception's place and type."""
        return "" if ei[1] is None else told_error(ei[1])


def start_log() -> None:
    """Send the service's log, and the web server's warnings, to the error stream."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutMessages(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    for name, level in (("fusionnet.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
