"""The end of zarr's reading thread, which zarr itself waits for too briefly.

At exit zarr gives the thread of its event loop 0.2 s to end and then closes the loop under it. On
a busy machine that printed a warning and a traceback ("Cannot close a running event loop") behind
one training in about twenty.
"""

import atexit
from functools import cache

from zarr.core import sync

LONGEST_S = 60.0


@cache
def await_thread_at_exit() -> None:
    """Let this process wait for the thread before zarr does; what is registered last runs first."""
    atexit.register(end_thread)


def end_thread() -> None:
    """Stop the event loop, if there is one, and wait until its thread has ended."""
    if sync._executor is not None:
        sync._executor.shutdown(wait=True, cancel_futures=True)
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LONGEST_S)
