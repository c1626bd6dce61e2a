"""What a run says of itself is its own."""

import subprocess
import sys

import pytest

# 200 MiB held
CHILD = (
    "from fusionnet.train.runlog import peak_rss_bytes; import numpy; held = numpy.ones(25 << 20);"
    " print(peak_rss_bytes())"
)
PARENT = (
    "import subprocess, sys; held = bytearray(b'1' * (5 << 28)); subprocess.run([sys.executable,"
    " '-c', sys.argv[1]], check=True)"
)


@pytest.mark.slow
def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert 200 << 20 < int(done.stdout) < 1 << 30
