"""Work on items in several processes: in order, as far ahead as is taken, and with no orphans.

What comes back does not depend on how many processes there are.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 3  # items that wait or are worked on, for each process


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """Yield the function's results in the items' order; the items may be without end.

    One process is this one. Function, items and results travel by pickle.
    """
    if processes == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that a thread holds
    remaining = iter(items)
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        try:
            pending: deque[Future[Result]] = deque(
                pool.submit(function, item) for item in islice(remaining, _AHEAD * processes)
            )
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it, instead of waiting for its queue for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
