"""A rank whose others never come says so."""

from datetime import timedelta

import pytest
import torch.distributed as dist
from forks import announced, free_port

from embedcache import ranks
from embedcache.errors import RankError
from fusionnet.train.world import World


@pytest.mark.slow
def test_a_rank_that_nobody_joins_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in announced("torchrun", 0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "JOINING", timedelta(seconds=1))
    with pytest.raises(RankError, match="rank 0 of 2 does not find the others"):
        World()
    assert not dist.is_initialized()
