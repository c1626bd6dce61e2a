"""Serve a trained run over HTTP, as JSON, until SIGTERM or Ctrl-C.

POST /predict and /reward answer rows in raw units, POST /design searches for one patient; GET
/schema has a row to begin with, GET /docs is a page that says everything, GET /health says when the
model is loaded.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from embedcache.errors import ServiceError
from fusionnet.commands.command import importing, run_job
from fusionnet.serving.address import is_open_to_others, open_socket
from fusionnet.trained.folder import find_checkpoint

WITHOUT_KEYS = (
    "WARNING: other machines can reach this address, and the service asks nobody who they are and"
    " encrypts nothing; put a server before it that does both, or use --host 127.0.0.1"
)


def main() -> None:
    """Take the address, load the run, and answer until told to stop."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, "best")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ServiceError(
            f"the service needs {' and '.join(missing)}, not installed here; pip install"
            " 'embedcache-fusionnet[serve]'"
        )
    listener = open_socket(arguments.host, arguments.port)
    if is_open_to_others(listener):
        print(WITHOUT_KEYS, file=sys.stderr, flush=True)
    # polars reads it once, when it is imported
    os.environ.setdefault("POLARS_MAX_THREADS", str(arguments.threads))
    with importing():
        from fusionnet.serving.limits import Limits
        from fusionnet.serving.server import serve

    limits = Limits(rows=arguments.max_rows, body_bytes=arguments.max_body_mb << 20)
    serve(arguments.run, listener, limits, arguments.threads)


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at: 127.0.0.1, this machine alone (default); 0.0.0.0, all",
    )
    parser.add_argument(
        "--port",
        type=_between(0, 65535),
        default=8000,
        help="8000; 0: a free one, which is told",
    )
    parser.add_argument(
        "--max-rows", type=_between(1, 10_000_000), default=10_000, help="of a request (10000)"
    )
    parser.add_argument(
        "--max-body-mb",
        type=_between(1, 4096),
        default=16,
        help="MiB of a request's body (16); eight times as many may wait in memory",
    )
    parser.add_argument(
        "--threads", type=_between(1, 1024), default=1, help="of the model's arithmetic (1)"
    )
    return parser.parse_args()


def _between(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number from `low` to `high`."""

    def whole(text: str) -> int:
        value = int(text) if text.strip().isdecimal() else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {low:,} to {high:,} (got {text!r:.40})"
            )
        return value

    return whole


if __name__ == "__main__":
    run_job(main)
