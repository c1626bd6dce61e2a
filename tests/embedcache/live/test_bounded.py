"""Encoding in two passes of bounded memory gives the vectors and gradients of one pass, with
dropout too, for any number of strings.
"""

from pathlib import Path

import pytest
import torch
from budgets import examples
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st
from nodes import living_gradient_nodes

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.batching import length_batches
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.live.bounded import encode_bounded, measure_budget, padded_tokens
from embedcache.live.step import LiveEncoder


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> StringEncoder:
    return adapted(tiny_encoder_folder, dropout=0.3)


def adapted(folder: Path, dropout: float) -> StringEncoder:
    torch.manual_seed(0)
    encoder = load_encoder(EncoderConfig(source=str(folder)))
    add_lora(encoder, LoraConfig(r=4, dropout=dropout))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:  # B starts at zero, and then A has no gradient
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.train()


def random_strings(num_strings: int, longest: int = 40, seed: int = 0) -> TokenTable:
    """Return strings of random tokens, of 4 to `longest`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest + 1, (num_strings,), generator=generator)
    values = torch.randint(5, 260, (int(lengths.sum()),), generator=generator)
    return TokenTable(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def backward(encoder: StringEncoder, vectors: torch.Tensor) -> list[torch.Tensor]:
    encoder.zero_grad()
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]


@pytest.mark.slow
@examples(cost=12)
@given(num_strings=st.integers(1, 60), max_tokens=st.integers(1, 400), seed=st.integers(0, 99))
def test_both_passes_see_the_same_masks(
    encoder: StringEncoder, num_strings: int, max_tokens: int, seed: int
) -> None:
    tokens = random_strings(num_strings, seed=seed)
    batches = length_batches(tokens.lengths, max_tokens)
    torch.manual_seed(seed)
    # the same batches, all activations kept
    kept = torch.cat([encoder(tokens.take(ids)) for ids in batches])[torch.cat(batches).argsort()]
    wanted = backward(encoder, kept)
    torch.manual_seed(seed)
    bounded = encode_bounded(encoder, tokens, max_tokens)
    torch.rand(7)  # the backward pass must replay the random state, not go on from here
    found = backward(encoder, bounded)
    if padded_tokens(tokens, max_tokens) > max_tokens:
        assert torch.equal(bounded, kept)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))
        torch.manual_seed(seed + 1)
        assert not torch.equal(encode_bounded(encoder, tokens, max_tokens), kept)  # dropout is on


@pytest.mark.slow
@pytest.mark.parametrize("num_strings", [5, 500, 20_000])
def test_exact_for_any_number_of_strings(tiny_encoder_folder: Path, num_strings: int) -> None:
    encoder, tokens = (
        adapted(tiny_encoder_folder, dropout=0.0),
        random_strings(num_strings, longest=40 if num_strings < 1_000 else 8),
    )
    string_id = torch.cat([torch.arange(num_strings), torch.arange(0, num_strings, 3)])
    # smooth in E it would be almost orthogonal to what LayerNorm lets through
    readout = torch.randn(len(string_id), encoder.width)
    parts = torch.arange(len(string_id)).tensor_split(-(-len(string_id) // 2_000))
    encoder.zero_grad()
    for part in parts:
        # every row encoded
        (encoder(tokens.take(string_id[part])) * readout[part]).sum().backward()
    wanted = torch.cat(
        [parameter.grad.flatten() for parameter in encoder.parameters() if parameter.requires_grad]
    )
    encoder.zero_grad()
    live = LiveEncoder(encoder, tokens, memory_bytes=8 << 20)
    calls = count_calls(encoder)
    with live.step(string_id):
        for part in parts:
            (live.vectors(string_id[part]) * readout[part]).sum().backward()
    found = torch.cat(
        [parameter.grad.flatten() for parameter in encoder.parameters() if parameter.requires_grad]
    )
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    num_batches = len(length_batches(tokens.lengths, live.budget.max_tokens))
    is_many = padded_tokens(tokens, live.budget.max_tokens) > live.budget.max_tokens
    assert is_many == (num_strings > 5)
    assert len(calls) - 2 == (2 * num_batches if is_many else 1)  # the first two calls measure


def count_calls(encoder: StringEncoder) -> list[int]:
    calls: list[int] = []
    # a forward that is replayed stops when all it is asked for is there
    encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_the_measure_keeps_no_graph_alive(encoder: StringEncoder) -> None:
    held = encoder(random_strings(3))
    assert living_gradient_nodes(encoder), "or this test sees nothing"
    del held
    measure_budget(encoder, random_strings(12), 10 << 20)
    assert living_gradient_nodes(encoder) == []


def test_the_budget_is_measured_and_leaves_no_trace(encoder: StringEncoder) -> None:
    tokens = random_strings(30)
    torch.manual_seed(5)
    first = measure_budget(encoder, tokens, 10 << 20)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in encoder.parameters()
    )
    assert measure_budget(encoder, tokens, 20 << 20).max_tokens == pytest.approx(
        2 * first.max_tokens, abs=1
    )
    # At least the inputs and outputs of two layers' products are kept, in fp32.
    assert first.bytes_per_token > 2 * 6 * encoder.width * 4


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_bounded import adapted, random_strings
from embedcache.live.bounded import encode_bounded
from fusionnet.train.runlog import peak_rss_bytes
encoder, tokens = adapted(Path(sys.argv[1]), 0.1), random_strings(3_000, longest=64)
encode_bounded(encoder, random_strings(20), 10**9).sum().backward()
before = peak_rss_bytes()
encode_bounded(encoder, tokens, int(sys.argv[2])).sum().backward()
print(peak_rss_bytes() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tiny_encoder_folder: Path, forks: Forks, tmp_path: Path) -> None:
    script, tests = tmp_path / "growth.py", Path(__file__).parent
    script.write_text(MEMORY)

    def growth(max_tokens: int) -> int:
        return int(forks.run(script, tiny_encoder_folder, max_tokens, tests).out.split()[-1])

    assert 0 < growth(4_000) < 0.35 * growth(10**9)
