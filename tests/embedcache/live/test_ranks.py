"""Plain loops on several ranks: whoever encodes a string, and whichever rank has its rows, the
weights move as on one rank.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from budgets import examples
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st

from embedcache.live.sharding import assign_strings

WORKER = Path(__file__).with_name("live_worker.py")
sys.path.insert(0, str(WORKER.parent))
from live_worker import train  # noqa: E402

# Fewer strings than ranks; strings that one rank alone has; a number of strings that no number of
# ranks divides; all of them.
STEPS = [
    [0, 1, 0, 1, 1, 0, 0],
    [4, 2, 2, 2, 2, 2, 4],
    [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0],
    [3, 3, 3, 3, 3, 3, 3],
]


@pytest.mark.dist
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_weights_move_as_on_one_rank(
    num_ranks: int, tiny_encoder_folder: Path, forks: Forks, tmp_path: Path
) -> None:
    cases = [(sharding, STEPS, sharding, 0.0) for sharding in ("replicate", "shard")]
    words = json.dumps([*cases, ("masks", STEPS, "shard", 0.5)])
    forks.run_ranks(WORKER, num_ranks, tiny_encoder_folder, tmp_path / "weights.pt", words)
    results = torch.load(tmp_path / "weights.pt", weights_only=True)
    wanted = train(str(tiny_encoder_folder), STEPS, "replicate", 0.0)
    start = train(str(tiny_encoder_folder), [], "replicate", 0.0)
    for sharding in ("replicate", "shard"):
        for name, value in wanted.items():
            moved = (value - start[name]).norm()
            assert moved > 0
            assert (results[sharding][name] - value).norm() <= 1e-4 * moved, f"{sharding} {name}"
    # with dropout the ranks still agree, and it is on
    assert not torch.equal(results["masks"]["0.weight"], results["shard"]["0.weight"])


@examples(cost=2)
@given(lengths=st.lists(st.integers(3, 200), min_size=1, max_size=80), num_ranks=st.integers(1, 9))
def test_each_string_is_assigned_once_and_work_is_even(lengths: list[int], num_ranks: int) -> None:
    shares = assign_strings(torch.tensor(lengths), num_ranks)
    assert sorted(torch.cat(shares).tolist()) == list(range(len(lengths)))
    assert max(len(share) for share in shares) - min(len(share) for share in shares) <= 1
    work = [sum(lengths[k] for k in share.tolist()) for share in shares]
    assert max(work) - min(work) <= max(lengths)
