"""Persistent worker processes that take turns: each mode has its own memory, hence its own peak,
and is warm when its turn comes.

A worker is `factory(spec)`, a callable that answers JSON with JSON, one line each. Only the worker
that was asked works; the others sleep.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from embedcache.errors import UserError

REPOSITORY = Path(__file__).parents[2]


class Worker:
    """A process of its own, asked in turns."""

    def __init__(self, factory: str, spec: dict[str, Any]) -> None:
        """`factory` is "module:name"; its result must be callable."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._name = f"{factory} {spec.get('mode', '')}".strip()
        environment = {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.workers", factory, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        self._ready: list[Any] = []

    @property
    def ready(self) -> Any:
        """What the worker said when it was made; waits for it, so that several can be started side
        by side.
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
        self._process.stdin.close()
        self._process.wait()
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
            self._errors.seek(0)
            raise UserError(
                f"the benchmark's worker {self._name} ended with exit code"
                f" {self._process.returncode}:\n{self._errors.read()[-3000:]}"
            )
        return json.loads(line)


def main(words: list[str]) -> None:
    """Answer requests until there are no more; whatever libraries print goes to the error
    stream.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = words[0].split(":")
    answer = getattr(import_module(module), name)(json.loads(words[1]))
    print(json.dumps(getattr(answer, "ready", None)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
