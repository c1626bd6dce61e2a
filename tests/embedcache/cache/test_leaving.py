"""A process that has read a cache ends without a word, however busy zarr's thread is."""

import time

import pytest
from forks import Forks
from zarr.core import sync

from embedcache.cache.leaving import await_thread_at_exit


def read_and_leave() -> None:
    """Leave zarr's event loop with more to do than zarr would wait for."""
    await_thread_at_exit()
    await_thread_at_exit()  # as for a second cache
    sync._get_executor()
    sync._get_loop().call_soon_threadsafe(time.sleep, 0.6)


@pytest.mark.dist
def test_the_thread_of_the_event_loop_is_awaited(forks: Forks) -> None:
    done = forks.call(read_and_leave).wait()
    assert done == (0, "", "")
