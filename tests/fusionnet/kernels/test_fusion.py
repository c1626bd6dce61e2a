"""A fusion with kernels is the one without: as exact in fp32; its stream is rounded in bf16."""

import copy

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS
from torch import Tensor, nn

import embedcache.encoder.add_norm as dispatch
from fusionnet import kernels
from fusionnet.model.members import MemberSplit
from fusionnet.model.modality_tokens import ModalityFusion
from fusionnet.model.single_token import MLPFusion, SingleTokenFusion

pytestmark = MARKS
WIDTH, HEADS, FEEDFORWARD, LAYERS, PARTS = 24, 4, 40, 2, 3


def fusion_of(kind: str, dropout: float = 0.0, members: int = 1) -> nn.Module:
    torch.manual_seed(0)
    split = MemberSplit(members, 1)
    made: nn.Module
    if kind == "joint":
        made = SingleTokenFusion(WIDTH, HEADS, FEEDFORWARD, LAYERS, dropout, split)
    elif kind == "mlp":
        made = MLPFusion(WIDTH, FEEDFORWARD, LAYERS, dropout, split)
    else:
        made = ModalityFusion(PARTS, WIDTH, HEADS, FEEDFORWARD, LAYERS, dropout, split)
    for name, parameter in made.named_parameters():
        if "norm" in name or "bias" in name or "members" in name:
            nn.init.normal_(parameter, std=0.5)
    return made.to(DEVICE)


def outcome(fusion: nn.Module, dtype: torch.dtype, num_rows: int = 33) -> list[Tensor]:
    """Return the fused rows, the gradients of the inputs and those of all weights."""
    generator = torch.Generator().manual_seed(3)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [
        torch.randn(num_rows, WIDTH, generator=generator).to(DEVICE, exact).requires_grad_()
        for _ in range(PARTS if isinstance(fusion, ModalityFusion) else 1)
    ]
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        fused = fusion(parts if isinstance(fusion, ModalityFusion) else parts[0]).to(exact)
    readout = torch.randn(fused.shape, generator=generator).to(DEVICE, exact)
    weights = list(fusion.parameters())
    gradients = torch.autograd.grad((fused * readout).sum(), [*parts, *weights])
    of_parts, of_weights = gradients[: len(parts)], gradients[len(parts) :]
    return [fused, torch.stack(of_parts), torch.cat([each.flatten() for each in of_weights])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "members"), [("joint", 1), ("joint", 3), ("mlp", 1), ("modality", 1), ("modality", 2)]
)
def test_with_and_without(
    kind: str, members: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = fusion_of(kind, members=members)
    found = outcome(fusion, dtype)
    for module in (dispatch, kernels):
        monkeypatch.setattr(module, "has_kernels", lambda x: False)
    plain = outcome(fusion, dtype)
    exact = outcome(copy.deepcopy(fusion).double(), torch.float64)
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        # plainly the stream between layers is fp32 under autocast, with kernels it is bf16
        assert_close(ours, theirs, truth, dtype, factor=2.0 if dtype == torch.float32 else 3.0)
    assert not torch.equal(found[2], plain[2])


@pytest.mark.parametrize("kind", ["joint", "mlp", "modality"])
def test_dropout_draws_anew_and_the_seed_repeats_it(kind: str) -> None:
    fusion = fusion_of(kind, dropout=0.2)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(outcome(fusion, torch.bfloat16, num_rows=7))
    for first, again, other in zip(*results, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
