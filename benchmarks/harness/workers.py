"""Child processes: workers that take turns, and commands of this project.

In a persistent worker each mode has its own memory, hence its own peak, and is warm when its turn
comes. A worker is `factory(spec)`, a callable that answers JSON with JSON, one line each. Only the
worker that was asked works; the others sleep.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from benchmarks.harness.stamp import REPOSITORY
from embedcache.errors import UserError

SECONDS_BETWEEN_LOOKS = 0.02
SHOWN_CHARACTERS = 3000  # of a failed child's error stream


class Ended(NamedTuple):
    """What a finished command leaves."""

    output: str
    peak_rss_bytes: int


def run_python(
    *words: str, shown: bool = False, defaults: Mapping[str, str] | None = None
) -> Ended:
    """Run a command of this project, such as ("-m", "jobs.build_cache"), by this interpreter.

    `shown` lets its output go to the terminal; `defaults` are environment variables where none is
    set. Raises UserError with the end of its error stream where it fails.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        streams = {} if shown else {"stdout": output, "stderr": errors}
        child = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, env=_environment(defaults), **streams
        )
        try:
            peak = _wait(child)
        except BaseException:
            child.kill()
            raise
        said, failed = (_read(stream) for stream in (output, errors))
    if child.returncode:
        command = " ".join(words[:4])
        raise UserError(
            f"{command} failed with exit code {child.returncode}:\n{failed[-SHOWN_CHARACTERS:]}"
        )
    return Ended(said, peak)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process to end and return its peak memory in bytes.

    What the kernel tells of an ended process also counts what it was before: its parent. So the
    process is asked while it runs, where there is a /proc.
    """
    status = Path(f"/proc/{child.pid}/status")
    if not status.is_file():
        child.wait()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    peak = 0
    while child.poll() is None:
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        peak = max(peak, 1024 * int(found[1]) if found else 0)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return peak


def _environment(defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    return {
        "TOKENIZERS_PARALLELISM": "false",
        **(defaults or {}),
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        # before what is there: packages may come that way alone
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
        ),
    }


def _read(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


class Worker:
    """A process of its own, asked in turns."""

    def __init__(self, factory: str, spec: dict[str, Any]) -> None:
        """`factory` is "module:name"; its result must be callable."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._name = f"{factory} {spec.get('mode', '')}".strip()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.workers", factory, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(),
            cwd=REPOSITORY,
        )
        self._ready: list[Any] = []

    @property
    def ready(self) -> Any:
        """What the worker said when it was made.

        Waits for it, so that several can be started side by side.
        """
        if not self._ready:
            self._ready.append(self._answer())
        return self._ready[0]

    def ask(self, request: Any = None) -> Any:
        """Return the worker's answer."""
        assert self._process.stdin is not None
        _ = self.ready
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise UserError(
                f"the benchmark's worker {self._name} ended with exit code"
                f" {self._process.returncode}:\n{_read(self._errors)[-SHOWN_CHARACTERS:]}"
            )
        return json.loads(line)


def main(words: list[str]) -> None:
    """Answer requests until there are no more; what libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = words[0].split(":")
    answer = getattr(import_module(module), name)(json.loads(words[1]))
    print(json.dumps(getattr(answer, "ready", None)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
