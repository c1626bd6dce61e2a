"""Workers keep their state between turns; what fails in a child is said by the parent."""

from pathlib import Path

import pytest

from benchmarks.harness.workers import Worker, run_python
from embedcache.errors import UserError

COUNTING = "tests.benchmarks.harness.counting_worker:Counting"


@pytest.mark.dist
def test_a_worker_keeps_its_state_and_says_how_it_ended() -> None:
    with Worker(COUNTING, {"mode": "m"}) as worker:
        assert worker.ready == "ready"
        assert worker.ask("a") == [{"mode": "m"}, "a", 1]
        assert worker.ask(None) == [{"mode": "m"}, None, 2]
        with pytest.raises(UserError, match="Counting m ended with exit code 1"):
            worker.ask("fail")


def test_a_command_leaves_its_output_and_peak_memory() -> None:
    small = run_python("-c", "print('said')")
    assert small.output == "said\n"
    large = run_python("-c", "x = bytearray(1 << 26); x[::4096] = x[::4096]")
    assert large.peak_rss_bytes - small.peak_rss_bytes > 1 << 25


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="exit code 3:\nthe reason"):
        run_python("-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)")


def test_a_command_finds_what_its_parent_finds_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("WHERE = 'beside'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    both = "import only_here, benchmarks.harness; print(only_here.WHERE)"
    assert run_python("-c", both).output == "beside\n"
