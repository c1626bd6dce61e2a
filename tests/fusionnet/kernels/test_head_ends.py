"""The ends of all heads: the kernel is at most twice as far from float64 as plain PyTorch, with all
gradients, drops what its seed says and repeats bitwise; heads with kernels are the heads without.
"""

import copy

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS, ON_GPU
from torch import Tensor

from embedcache.kernels.reference import keep_mask
from fusionnet.config.tasks import Task
from fusionnet.kernels import reference
from fusionnet.kernels.head_ends import head_ends
from fusionnet.kernels.reference import Segment
from fusionnet.model import heads as model
from fusionnet.model.heads import Heads
from fusionnet.model.linear import cast_at_once

pytestmark = MARKS
SEGMENTS = {
    "one": (Segment(1, 0.3, True),),
    "odd": (Segment(7, 0.0, True), Segment(33, 0.4, True), Segment(50, 0.2, False)),
    "even": (Segment(32, 0.1, True), Segment(32, 0.0, True), Segment(64, 0.3, False)),
    "ending": (Segment(16, 0.2, True), Segment(48, 0.5, True)),
}
CASES = [
    ("one", 1, torch.float32),
    ("odd", 0, torch.bfloat16),
    ("odd", 57, torch.float32),
    ("odd", 257 if ON_GPU else 131, torch.bfloat16),
    ("even", 57, torch.float16),
    ("even", 1023 if ON_GPU else 65, torch.bfloat16),
    ("ending", 7, torch.bfloat16),
]


@pytest.mark.parametrize(("name", "num_rows", "dtype"), CASES)
@pytest.mark.parametrize("masked", [True, False])
def test_outputs_and_gradients(name: str, num_rows: int, dtype: torch.dtype, masked: bool) -> None:
    segments = SEGMENTS[name]
    ends = [segment.width for segment in segments if segment.ends]
    generator = torch.Generator().manual_seed(num_rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    width = sum(segment.width for segment in segments)
    hidden = normal(num_rows, width).to(dtype)
    last = normal(sum(ends) + len(ends))
    # as a slice of all tasks' gradients is
    of_out = normal(num_rows, len(ends) + 2)[:, 1:-1]
    of_active = normal(num_rows, width - sum(ends)).to(dtype)
    seed = torch.tensor([2**40 + 17], device=DEVICE) if masked else None
    results = []
    for call, cast, cast_last in (
        (head_ends, dtype, torch.float32),
        (head_ends, dtype, torch.float32),
        (reference.head_ends, dtype, torch.float32),
        (reference.head_ends, torch.float64, torch.float64),
    ):
        leaves = [hidden.to(cast, copy=True), last.to(cast_last, copy=True)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out, active = call(*leaves, segments, seed)
        above = (of_out.to(out.dtype), of_active.to(active.dtype))
        results.append([out, active, *torch.autograd.grad((out, active), leaves, above)])
    for place, (found, again, plain, exact) in enumerate(zip(*results, strict=True)):
        assert torch.equal(found, again), "not repeatable"
        assert_close(found, plain, exact, torch.float32 if place in (0, 3) else dtype)


def test_the_masks_are_cut_from_one_by_philox() -> None:
    segments = SEGMENTS["odd"]
    seed = torch.tensor([2**61 + 5], device=DEVICE)
    hidden = torch.ones(131, 90, device=DEVICE)
    # each column a place of a binary number
    last = torch.cat([2.0 ** torch.arange(7), torch.ones(33), torch.zeros(2)]).to(DEVICE)
    out, active = head_ends(hidden, last, segments, seed)
    assert (out[:, 0] == 2**7 - 1).all()
    kept = keep_mask(seed, 131, 8 + 33, 0.4)[:, 8:]
    torch.testing.assert_close(out[:, 1], kept.sum(1) / 0.6)
    assert torch.equal(active > 0, keep_mask(seed, 131, 44 + 50, 0.2)[:, 44:])


TASKS = [
    Task(name="deep", column="a", loss="mse", head=(24, 8), head_dropout=0.3),
    Task(name="wide", column="b", loss="mse", head=(32,), head_dropout=0.0),
    Task(name="narrow", column="c", loss="mse", head=(8,), head_dropout=0.2),
    Task(name="deeper", column="d", loss="mse", head=(16, 8, 4), head_dropout=0.0),
    Task(name="last", column="e", loss="mse", head=(12,), head_dropout=0.2),
]


def outcome(heads: Heads, dtype: torch.dtype) -> list[Tensor]:
    """Return the outputs, the gradient of the rows and those of each head's weights."""
    generator = torch.Generator().manual_seed(3)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    fused = torch.randn(37, 20, generator=generator).to(DEVICE, exact).requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = heads(fused).to(exact)
    readout = torch.randn(outputs.shape, generator=generator).to(DEVICE, exact)
    heads.zero_grad()
    (outputs * readout).sum().backward()
    of_heads = [[each.grad.flatten() for each in head.parameters()] for head in heads.values()]
    return [outputs, fused.grad, *map(torch.cat, of_heads)]


@pytest.mark.parametrize("tasks", [TASKS, TASKS[1:3], TASKS[::-1]], ids=len)
def test_heads_with_and_without(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    heads = Heads(20, tasks).to(DEVICE).eval()
    found = outcome(heads, torch.bfloat16)
    with cast_at_once(heads, torch.bfloat16):
        for once, each in zip(outcome(heads, torch.bfloat16), found, strict=True):
            assert torch.equal(once, each)
    exact = outcome(copy.deepcopy(heads).double(), torch.float64)
    monkeypatch.setattr(model, "in_mixed_training", lambda x: False)
    plain = outcome(heads, torch.bfloat16)
    assert not torch.equal(found[0], plain[0])
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert_close(ours, theirs, truth, torch.bfloat16)


def test_dropout_draws_anew_and_the_seed_repeats_it() -> None:
    heads = Heads(20, TASKS).to(DEVICE)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(outcome(heads, torch.bfloat16))
    for first, again in zip(results[0], results[1], strict=True):
        assert torch.equal(first, again)
    different = (results[0][0] != results[2][0]).any(0).tolist()
    assert different == [task.head_dropout > 0 for task in TASKS]
