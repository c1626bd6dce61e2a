"""A rank that dies ends the others, with a message and without a hang. No launcher is asked to: one
may tell the other rank to stop before it has seen that its neighbour is gone.
"""

from pathlib import Path

import pytest
from forks import Forks

pytestmark = pytest.mark.dist
WORKER = Path(__file__).with_name("faulty_train.py")
SAID = "another rank of this training ended, so rank 0 ends too"


@pytest.fixture
def words(tiny_experiment: Path, tmp_path: Path) -> tuple[object, ...]:
    values = ("--set", f"run.dir={tmp_path / 'run'}", "--set", "train.epochs=500")
    return ("--config", tiny_experiment, *values)


@pytest.mark.parametrize(("how", "code"), [("raises", 2), ("killed", -9), ("loading", -9)])
def test_the_rank_that_is_left_says_so_and_ends(
    how: str, code: int, words: tuple[object, ...], forks: Forks, tmp_path: Path
) -> None:
    left, dead = (rank.wait() for rank in forks.start_ranks(WORKER, 2, how, *words))
    assert (left.code, dead.code) == (2, code), left
    assert ("rank 1 has had enough" in dead.err) == (how == "raises")
    assert SAID in left.err
    assert "Traceback" not in left.err
    assert not (tmp_path / "run" / "tiny_final.pt").exists()
