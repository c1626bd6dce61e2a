"""The worker of test_workers.py."""

from typing import Any


class Counting:
    """Answers with what it was made of, what it was asked, and how often it was."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.calls = spec, 0
        self.ready = "ready"

    def __call__(self, request: Any) -> list[Any]:
        print("libraries print, too")
        if request == "fail":
            raise ValueError("as it was asked to")
        self.calls += 1
        return [self.spec, request, self.calls]
