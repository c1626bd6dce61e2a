"""With its kernels the whole encoder gives the vectors and gradients that it gives without them."""

from pathlib import Path

import pytest
import torch
from exactness import assert_close
from kernel_device import DEVICE, MARKS
from torch import Tensor

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder import add_norm
from embedcache.encoder.deberta import attention, projection
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable

pytestmark = MARKS
LENGTHS = [4, 17, 9, 30, 17]
CHOOSERS = (add_norm, attention, projection)  # who ask whether there are kernels


def outcome(encoder: StringEncoder) -> dict[str, Tensor]:
    """Return the vectors and the gradients of a linear readout of them."""
    generator = torch.Generator().manual_seed(1)
    tokens = TokenTable(
        torch.randint(5, 260, (sum(LENGTHS),), generator=generator),
        torch.tensor([0, *LENGTHS]).cumsum(0),
    )
    encoder.zero_grad()
    vectors = encoder(tokens.to(DEVICE))
    readout = torch.linspace(-1, 1, vectors.numel(), device=DEVICE).view_as(vectors)
    (vectors * readout).sum().backward()
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    return {"vectors": vectors.detach()} | {name: p.grad.clone() for name, p in trained.items()}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_encoder_with_kernels_is_the_encoder_without(
    tiny_encoder_folder: Path, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling=pooling))
    add_lora(encoder, LoraConfig(r=4, dropout=0.0))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embeddings" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    encoder.train().to(DEVICE)
    launched = []
    for module in CHOOSERS:
        monkeypatch.setattr(module, "has_kernels", lambda x: launched.append(x.shape) or True)
    found = outcome(encoder)
    # two layers, each with two norms; the last one's query is projected for [CLS] alone
    assert len(launched) == (9 if pooling == "cls" else 8)
    for module in CHOOSERS:
        monkeypatch.setattr(module, "has_kernels", lambda x: False)
    wanted = outcome(encoder)
    largest = max(gradient.abs().max() for name, gradient in wanted.items() if name != "vectors")
    assert largest > 0
    torch.testing.assert_close(found.pop("vectors"), wanted.pop("vectors"), rtol=1e-4, atol=1e-4)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_in_bf16_it_is_as_good(
    tiny_encoder_folder: Path, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling=pooling))
    add_lora(encoder, LoraConfig(r=4, dropout=0.0))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    encoder.train().to(DEVICE)

    def rounded() -> list[Tensor]:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return joined(outcome(encoder))

    found = rounded()
    for module in CHOOSERS:
        monkeypatch.setattr(module, "has_kernels", lambda x: False)
    plain, exact = rounded(), joined(outcome(encoder.double()))
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert_close(ours, theirs, truth.double(), torch.bfloat16)


def joined(found: dict[str, Tensor]) -> list[Tensor]:
    """Return the vectors, and all gradients in one."""
    vectors, *gradients = found.values()
    return [vectors, torch.cat([each.flatten() for each in gradients])]
