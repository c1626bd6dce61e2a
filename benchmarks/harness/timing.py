"""Fair timing on a noisy machine: modes take turns, one after another in rounds, and every number
is a median with its spread.

A machine slows down and speeds up by tens of percent over minutes. Timing one mode after the other
would give that to whichever mode came last; in rounds it meets all of them, and a ratio is taken
within each round before its median is. Every round has an order of its own, so that no mode always
follows the same one and finds memory and caches as that one left them, and none follows itself:
rounds that ran forwards and backwards in turn gave the last mode its own warm memory in the next
round, up to 13 % of a step.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Turn = TypeVar("Turn")
PHASES = (
    "read rows",
    "encode",
    "fusion forward",
    "loss",
    "backward: fusion",
    "backward: encoder",
    "update",
    "rest",
)


def interleaved(
    turns: Mapping[str, Callable[[], Turn]],
    rounds: int,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Turn]]:
    """Return what each turn returned, round by round.

    All turns take part in every round, in an order that is random and always the same.
    """
    found: dict[str, list[Turn]] = {name: [] for name in turns}
    generator, order = np.random.default_rng(0), list(turns)
    for number in range(rounds):
        for name in order:
            found[name].append(turns[name]())
        order = _reordered(order, generator)
        report(f"round {number + 1} of {rounds} done")
    return found


def _reordered(order: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Return another order, whose first is not the last of this one.

    Two keep their order: each then follows the other.
    """
    if len(order) < 2:
        return list(order)
    *rest, last = order
    first = rest.pop(int(generator.integers(len(rest))))
    return [first, *(str(name) for name in generator.permutation([*rest, last]))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 20th and 80th percentile."""
    low, high = np.percentile(values, [20, 80])
    return {"median": statistics.median(values), "p20": float(low), "p80": float(high)}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratios taken within each round."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


def extended(seconds: Mapping[int, float], rows: int) -> tuple[float, float]:
    """Return the seconds of a step of `rows` rows, and how far measured steps are off its line.

    The line goes through the smallest and the largest measured step (seconds by rows). The second
    number is the largest |measured - line| / measured: what a reader must allow for.
    """
    sizes = sorted(seconds)
    few, many = sizes[0], sizes[-1]
    slope = (seconds[many] - seconds[few]) / (many - few)
    errors = [
        abs(seconds[size] - (seconds[few] + slope * (size - few))) / seconds[size]
        for size in sizes[1:-1]
    ]
    return seconds[few] + slope * (rows - few), max(errors, default=0.0)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, work that it left to a GPU included."""
    settle()
    started = time.perf_counter()
    call()
    settle()
    return time.perf_counter() - started


def settle() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Phases:
    """Adds up the time of a step by phase; an inner phase's time is not also the outer one's."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = ["rest"]
        self._since = time.perf_counter()

    def reset(self) -> None:
        """Begin a step: nothing is counted yet."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open = ["rest"]
        settle()
        self._since = time.perf_counter()

    def finish(self) -> dict[str, float]:
        """End the step and return its seconds by phase."""
        self._count()
        return dict(self.seconds)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Count the context as a phase."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begin a phase inside the present one."""
        self._count()
        self._open.append(name)

    def leave(self) -> None:
        """Go back to the phase that the present one interrupted."""
        self._count()
        self._open.pop()

    def become(self, name: str) -> None:
        """Turn the present phase into another one: a backward pass that has reached the encoder."""
        self._count()
        self._open[-1] = name

    def watch(self, module: nn.Module, name: str, backward: str | None = None) -> None:
        """Count a module's forward passes as a phase.

        From the moment that a gradient reaches its output, `backward` is counted.
        """
        if module._compiled_call_impl is not None:
            assert backward is None, "a compiled module's backward pass is not watched"
            # the compiler would trace hooks
            module._compiled_call_impl = self.wrap(name, module._compiled_call_impl)
            return
        module.register_forward_pre_hook(lambda *_: self.enter(name))

        def done(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.leave()
            if backward is not None and isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(
                    lambda _: self.become(backward) if len(self._open) > 1 else None
                )

        module.register_forward_hook(done)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, counted as a phase."""

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            with self.inside(name):
                return call(*arguments, **keywords)

        return wrapped

    def _count(self) -> None:
        settle()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now
