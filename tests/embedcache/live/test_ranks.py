"""Plain loops on several ranks: whoever encodes a string, and whichever rank has its rows, the
weights move as on one rank.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
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


def run_ranks(
    folder: Path, output: Path, num_ranks: int, cases: list[tuple[str, list[list[int]], str, float]]
) -> dict[str, dict[str, torch.Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        **os.environ,
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(output), json.dumps(cases)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return torch.load(output, weights_only=True)


@pytest.mark.dist
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_weights_move_as_on_one_rank(
    num_ranks: int, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    cases = [(sharding, STEPS, sharding, 0.0) for sharding in ("replicate", "shard")]
    results = run_ranks(
        tiny_encoder_folder,
        tmp_path / "weights.pt",
        num_ranks,
        [*cases, ("masks", STEPS, "shard", 0.5)],
    )
    wanted = train(str(tiny_encoder_folder), STEPS, "replicate", 0.0)
    start = train(str(tiny_encoder_folder), [], "replicate", 0.0)
    for sharding in ("replicate", "shard"):
        for name, value in wanted.items():
            moved = (value - start[name]).norm()
            assert moved > 0
            assert (results[sharding][name] - value).norm() <= 1e-4 * moved, f"{sharding} {name}"
    # with dropout the ranks still agree, and it is on
    assert not torch.equal(results["masks"]["0.weight"], results["shard"]["0.weight"])


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(3, 200), min_size=1, max_size=80), num_ranks=st.integers(1, 9))
def test_each_string_is_dealt_once_and_work_is_even(lengths: list[int], num_ranks: int) -> None:
    parts = assign_strings(torch.tensor(lengths), num_ranks)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1
    work = [sum(lengths[k] for k in part.tolist()) for part in parts]
    assert max(work) - min(work) <= max(lengths)
