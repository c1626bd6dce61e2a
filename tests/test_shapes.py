"""The canary: a wrong shape must raise, or the axes in signatures are only comments."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype

from embedcache.encoder.batching import length_batches
from fusionnet.rows.plan import StepPlan


@pytest.fixture
def checked(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """What the hook of the tests does to a function; nothing where the hook has done it."""
    if request.config.getoption("--jaxtyping-packages"):
        return lambda function: function
    return jaxtyping.jaxtyped(typechecker=beartype)


def test_a_wrong_shape_raises_in_both_packages(checked: Callable[[Any], Any]) -> None:
    batches = checked(length_batches)
    assert batches(torch.tensor([3, 4]), 16)
    with pytest.raises(jaxtyping.TypeCheckError):
        batches(torch.tensor([[3, 4]]), 16)
    plan = StepPlan(num_rows=4, batch_rows=4, num_micro_batches=1, world_size=1, seed=0)
    micro_batches = checked(StepPlan.micro_batches)
    assert micro_batches(plan, torch.arange(4), 0)
    with pytest.raises(jaxtyping.TypeCheckError):
        micro_batches(plan, torch.zeros(2, 2, dtype=torch.int64), 0)
