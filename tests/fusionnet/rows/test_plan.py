"""Every row is read exactly once an epoch, whatever the ranks and micro-batches; loss denominators
count observed weight.
"""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.tensors import load_rows


@given(
    num_rows=st.integers(1, 300),
    batch_rows=st.integers(1, 97),
    micro=st.integers(1, 5),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_row_is_read_once_an_epoch(
    num_rows: int, batch_rows: int, micro: int, world: int, epoch: int
) -> None:
    plan = StepPlan(num_rows, batch_rows, micro, world, seed=5)
    seen = []
    for step in plan.steps(epoch):
        assert 0 < len(step) <= batch_rows
        parts = [part for rank in range(world) for part in plan.micro_batches(len(step), rank)]
        assert len(parts) == micro * world
        sizes = [len(step[part]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        seen += [step[part] for part in parts]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(num_rows))


def test_the_order_depends_on_seed_and_epoch_alone_and_can_be_entered_anywhere() -> None:
    plan = StepPlan(1000, 64, 1, 1, seed=3)
    steps = list(plan.steps(2))
    for first in (0, 7, 15):
        assert all(
            torch.equal(a, b) for a, b in zip(plan.steps(2, first), steps[first:], strict=True)
        )
    assert not torch.equal(torch.cat(steps), torch.cat(list(plan.steps(3))))
    assert not torch.equal(
        torch.cat(steps), torch.cat(list(StepPlan(1000, 64, 1, 1, seed=4).steps(2)))
    )
    assert [len(step) for step in plan.steps(0)] == [63] * 8 + [62] * 8


def test_rows_of_a_split_are_standardised_and_denominators_count_observed_weight(
    tiny_experiment: Path,
) -> None:
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    rows = load_rows(cache, "train")
    assert (
        rows.num_rows + load_rows(cache, "validation").num_rows + load_rows(cache, "test").num_rows
        == cache.layout.num_rows
    )
    torch.testing.assert_close(rows.numeric.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.numeric.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    observed = ~rows.targets.isnan()
    assert 0 < observed[:, 2].sum() < rows.num_rows
    by_hand = torch.stack([rows.weight[observed[:, task]].sum() for task in range(3)])
    torch.testing.assert_close(rows.loss_denominators(), by_hand)
    assert set(rows.weight.tolist()) == {1.0, 5.0}
