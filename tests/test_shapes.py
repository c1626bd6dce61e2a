"""The canary: a wrong shape must raise, or the axes in signatures are only comments."""

import jaxtyping
import pytest
import torch

from embedcache.encoder.batching import length_batches
from fusionnet.rows.plan import StepPlan


def test_a_wrong_shape_raises_in_both_packages() -> None:
    assert length_batches(torch.tensor([3, 4]), 16)
    with pytest.raises(jaxtyping.TypeCheckError):
        length_batches(torch.tensor([[3, 4]]), 16)
    plan = StepPlan(num_rows=4, batch_rows=4, num_micro_batches=1, world_size=1, seed=0)
    with pytest.raises(jaxtyping.TypeCheckError):
        plan.micro_batches(torch.zeros(2, 2, dtype=torch.int64), 0)
