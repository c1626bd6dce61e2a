"""Every way of encoding gives the gradients of encoding each row alone; a step left unfinished is an error."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.config import EncoderConfig, LoraConfig
from embedcache.encoder import StringEncoder, load_encoder
from embedcache.errors import UnfinishedStepError
from embedcache.live import CachedVectors, LiveEncoder, PerMicrobatch, PerRow, VectorSource
from embedcache.lora import add_lora
from embedcache.tokens import TokenTable, load_tokenizer, tokenize

STRINGS = ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C", "[*]c1ccc([*])[nH]1", "[*]NCC(=O)N1CCCC1C(=O)[*]"]


@pytest.fixture(scope="module")
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    return tokenize(load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder))), STRINGS, 512).tokens


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> StringEncoder:
    torch.manual_seed(0)
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    add_lora(encoder, LoraConfig(r=4, dropout=0.0))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:  # B starts at zero, and then A has no gradient
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.train()


def gradients(encoder: StringEncoder, source: VectorSource, ids: torch.Tensor, num_micro_batches: int) -> list[torch.Tensor]:
    """Return the encoder's gradients of a loss that treats every row differently."""
    encoder.zero_grad()
    readout = torch.linspace(-1, 1, len(ids) * encoder.width).view(len(ids), encoder.width)
    source.begin_step(ids, num_micro_batches)
    for part in torch.arange(len(ids)).tensor_split(num_micro_batches):
        vectors, index = source.read(ids[part])
        loss = ((vectors[index] * readout[part]).sum(1) ** 2).sum()
        surrogate = source.surrogate(1.0)
        (loss if surrogate is None else loss + surrogate).backward()
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]


@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(0, len(STRINGS) - 1), min_size=4, max_size=23), num_micro_batches=st.integers(1, 4))
def test_gradients_equal_those_of_encoding_each_row(encoder: StringEncoder, tokens: TokenTable, ids: list[int], num_micro_batches: int) -> None:
    string_id = torch.tensor(ids)
    wanted = gradients(encoder, PerRow(encoder, tokens, pad_to=64), string_id, 1)
    scale = max(gradient.abs().max() for gradient in wanted)
    assert scale > 0
    for source in (PerRow(encoder, tokens), PerMicrobatch(encoder, tokens), LiveEncoder(encoder, tokens)):
        for found, gradient in zip(gradients(encoder, source, string_id, num_micro_batches), wanted, strict=True):
            assert (found - gradient).abs().max() <= 1e-5 * scale


def test_live_equals_cached_with_fresh_lora(tiny_encoder_folder: Path, tokens: TokenTable) -> None:
    plain = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    with torch.no_grad():
        cached = CachedVectors(plain(tokens))
    adapted = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    add_lora(adapted, LoraConfig())
    live = LiveEncoder(adapted, tokens)
    torch.testing.assert_close(live.table(), cached.table(), rtol=1e-6, atol=1e-6)
    ids = torch.tensor([4, 0, 4, 2])
    live.begin_step(ids, 1)
    vectors, index = live.read(ids)
    kept, kept_index = cached.read(ids)
    adapted.eval()
    torch.testing.assert_close(vectors[index], kept[kept_index], rtol=1e-6, atol=1e-6)
    assert kept.std() > 0


def test_a_step_encodes_each_distinct_string_once(encoder: StringEncoder, tokens: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = StringEncoder.forward
    monkeypatch.setattr(StringEncoder, "forward", lambda self, table, **more: seen.append(table.num_strings) or forward(self, table, **more))
    gradients(encoder, LiveEncoder(encoder, tokens), torch.tensor([0, 3, 3, 0, 3, 0, 0, 3]), 4)
    assert seen == [2]


def test_forgetting_the_surrogate_is_an_error(encoder: StringEncoder, tokens: TokenTable) -> None:
    live, ids = LiveEncoder(encoder, tokens), torch.tensor([0, 1, 2, 0])
    live.begin_step(ids, 2)
    for part in ids.chunk(2):
        vectors, index = live.read(part)
        loss = vectors[index].pow(2).sum()
        if live._unread == 0:
            with pytest.raises(UnfinishedStepError, match="surrogate"):
                loss.backward()
        else:
            loss.backward()


def test_a_step_left_unfinished_is_an_error(encoder: StringEncoder, tokens: TokenTable) -> None:
    live, ids = LiveEncoder(encoder, tokens), torch.tensor([0, 1, 2, 0])
    live.begin_step(ids, 2)
    live.read(ids[:2])
    with pytest.raises(UnfinishedStepError, match="never reached"):
        live.begin_step(ids, 2)
    live.abandon_step()
    live.begin_step(ids, 1)
    live.read(ids)
    with pytest.raises(UnfinishedStepError, match="more often"):
        live.read(ids)


def test_tables_are_made_without_dropout_and_leave_the_mode_alone(encoder: StringEncoder, tokens: TokenTable) -> None:
    live = LiveEncoder(encoder.train(), tokens)
    torch.testing.assert_close(live.table(), live.table(), rtol=0, atol=0)
    assert encoder.training
    assert not live.table().requires_grad
