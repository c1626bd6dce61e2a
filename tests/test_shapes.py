"""The canary: a wrong shape must raise, or the axes in signatures are only comments."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch

from embedcache.encoder.batching import length_batches
from fusionnet.rows.tensors import RowInputs

beartype = pytest.importorskip("beartype", reason="beartype checks the shapes").beartype


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
    rows = RowInputs(
        torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 2), torch.zeros(4, 0).long()
    )
    take = checked(RowInputs.take)
    assert take(rows, torch.arange(2)).num_rows == 2
    with pytest.raises(jaxtyping.TypeCheckError):
        take(rows, torch.zeros(2, 2, dtype=torch.int64))
