"""Cached hidden states: the same vectors and gradients as running the whole encoder, stored once,
refused where they are not there.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.build.identity import has_states
from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import ConfigError, EncoderError
from embedcache.schema import parse_config

STRINGS = [
    "[*]CC[*]",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
    "[*]CCO[*]",
    "[*]CC([*])C(=O)OCC[N+](C)(C)C",
    "[*]c1ccc([*])[nH]1",
    "[*]CC([*])C",
]


@pytest.fixture
def encoder(tiny_encoder_folder: Path) -> StringEncoder:
    """An encoder whose upper layer of two is adapted, with weights that matter."""
    found = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling="mean"))
    add_lora(found, LoraConfig(r=4, dropout=0.3, first_layer=1))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return found


@pytest.fixture
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    return tokenize(
        load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder))), STRINGS, 512, 269
    ).tokens


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("training", [False, True])
def test_states_give_the_vectors_and_gradients_of_the_whole_encoder(
    encoder: StringEncoder, tokens: TokenTable, pooling: str, training: bool
) -> None:
    encoder.pooling = pooling
    cached = replace(tokens, states=encoder.states(tokens, 1))
    encoder.train(training)
    gradients = []
    for table in (tokens, cached):
        encoder.zero_grad()
        torch.manual_seed(5)  # the same dropout masks
        vectors = encoder(table.take(torch.tensor([4, 0, 3, 3])))
        (vectors**2).sum().backward()
        gradients.append(
            [vectors.detach(), *(p.grad for p in encoder.parameters() if p.requires_grad)]
        )
    for whole, top in zip(*gradients, strict=True):
        torch.testing.assert_close(top, whole, rtol=1e-5, atol=1e-6)


def test_only_layers_from_the_first_adapted_one_on_are_run_and_trained(
    encoder: StringEncoder, tokens: TokenTable
) -> None:
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".layer.1." in name for name in trained)
    before = [name for name, _ in encoder.named_parameters()]
    cached = replace(tokens, states=encoder.states(tokens, 1))
    with torch.no_grad():
        wanted = encoder.eval()(cached)
        for name, parameter in encoder.named_parameters():
            if ".layer.0." in name or "embeddings" in name:
                parameter.fill_(float("nan"))
        torch.testing.assert_close(encoder(cached), wanted)
        assert encoder(tokens).isnan().all()  # the whole model is still there
    assert [name for name, _ in encoder.named_parameters()] == before


def test_impossible_layers_are_refused(tiny_encoder_folder: Path) -> None:
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    with pytest.raises(EncoderError, match="first_layer is 2, the encoder has layers 0 to 1"):
        add_lora(encoder, LoraConfig(first_layer=2))
    encoder.model.encoder.conv = torch.nn.Identity()
    with pytest.raises(EncoderError, match="convolution"):
        add_lora(encoder, LoraConfig(first_layer=1))
    with pytest.raises(ConfigError, match=r"set encoder\.lora\.first_layer"):
        parse_config(EncoderConfig, {"mode": "prefix"}, "test")


def test_a_build_stores_states_once_and_other_modes_share_the_cache(
    make_study: Callable, tmp_path: Path
) -> None:
    plain: Any = make_study(tmp_path)
    assert plain.build().status == "built"
    prefix = plain.but(encoder={"mode": "prefix", "lora": {"first_layer": 1}})
    assert not has_states(plain.open(), prefix.data, prefix.encoder)
    assert prefix.build().status == "built"  # the same identity, but the states were missing
    assert prefix.build().status == "up to date"
    assert plain.build().status == "up to date"
    cache = prefix.open()
    table = cache.strings("polymer", with_states=True)
    assert cache.strings("polymer").tokens.states is None
    assert table.tokens.states is not None
    encoder = load_encoder(prefix.encoder)
    add_lora(encoder, LoraConfig(first_layer=1))
    with torch.no_grad():
        # fresh LoRA changes nothing
        torch.testing.assert_close(
            encoder.eval()(table.tokens), table.embeddings, rtol=1e-5, atol=1e-6
        )
    cache.verify()
