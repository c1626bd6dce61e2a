"""LoRA, DoRA and rsLoRA: nothing changes at first, every mode gives the gradients of encoding each
row, and the files are PEFT's own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import write_architecture
from transformers import AutoModel

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora, load_adapter, save_adapter
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import EncoderError

STRINGS = [
    "[*]CC[*]",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
    "[*]CCO[*]",
    "[*]CC([*])C(=O)OCC[N+](C)(C)C",
    "[*]c1ccc([*])[nH]1",
    "[*]CC([*])C",
]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "both": {"use_dora": True, "use_rslora": True},
    "some projections": {"target_modules": ("query_proj", "value_proj")},
    "feed-forward too": {"target_modules": ("key_proj", "dense")},
}


@pytest.fixture(scope="module")
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    return tokenize(
        load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder))), STRINGS, 512, 269
    ).tokens


def adapted(folder: Path, pooling: str, moved: bool, **settings: Any) -> StringEncoder:
    encoder = load_encoder(EncoderConfig(source=str(folder), pooling=pooling))
    torch.manual_seed(0)
    add_lora(encoder, LoraConfig(r=4, **{"dropout": 0.0, **settings}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad and moved:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def gradients(
    encoder: StringEncoder, tokens: TokenTable, pad_to: int | None = None
) -> dict[str, torch.Tensor]:
    """Return vectors and gradients of a loss that treats every string and component differently."""
    encoder.zero_grad()
    vectors = encoder(tokens, pad_to)
    (
        vectors * torch.linspace(-1, 1, vectors.numel(), dtype=vectors.dtype).view_as(vectors)
    ).sum().backward()
    return {
        "vectors": vectors.detach(),
        **{
            name: parameter.grad
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad
        },
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_adapters_change_nothing_and_train(
    tiny_encoder_folder: Path, tokens: TokenTable, variant: str
) -> None:
    encoder = adapted(tiny_encoder_folder, "cls", False, **VARIANTS[variant])
    plain = load_encoder(EncoderConfig(source=str(tiny_encoder_folder), pooling="cls"))(tokens)
    torch.testing.assert_close(encoder(tokens), plain, rtol=1e-6, atol=1e-7)
    optimizer = torch.optim.SGD(
        [parameter for parameter in encoder.parameters() if parameter.requires_grad], lr=1.0
    )
    target = torch.linspace(-1, 1, plain.numel()).view_as(plain)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (encoder(tokens) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_plain_model(
    tiny_encoder_folder: Path, tokens: TokenTable, variant: str, pooling: str
) -> None:
    encoder = adapted(tiny_encoder_folder, pooling, True, **VARIANTS[variant]).train()
    wanted, found = gradients(encoder, tokens, pad_to=48), gradients(encoder, tokens)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_states_serve_every_variant(
    tiny_encoder_folder: Path, tokens: TokenTable, variant: str, pooling: str
) -> None:
    encoder = adapted(
        tiny_encoder_folder, pooling, True, first_layer=1, **VARIANTS[variant]
    ).train()
    wanted = gradients(encoder, tokens, pad_to=48)
    found = gradients(encoder, replace(tokens, states=encoder.states(tokens, 1)))
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())
        )


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_pefts_own(
    tiny_encoder_folder: Path, tokens: TokenTable, tmp_path: Path, variant: str, pooling: str
) -> None:
    encoder = adapted(tiny_encoder_folder, pooling, True, dropout=0.1, **VARIANTS[variant])
    save_adapter(encoder, tmp_path / "adapter")
    wanted = encoder.eval()(tokens)
    ids, mask = tokens.padded()
    theirs = peft.PeftModel.from_pretrained(
        AutoModel.from_pretrained(tiny_encoder_folder), tmp_path / "adapter"
    ).eval()
    hidden = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    pooled = (
        hidden[:, 0]
        if pooling == "cls"
        else (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
    )
    torch.testing.assert_close(pooled, wanted, rtol=1e-4, atol=1e-5)
    again = adapted(tiny_encoder_folder, pooling, False, **VARIANTS[variant]).eval()
    assert not torch.allclose(again(tokens), wanted, atol=1e-3)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again(tokens), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_is_drawn_in_training_alone(
    tiny_encoder_folder: Path, tokens: TokenTable, variant: str
) -> None:
    encoder = adapted(tiny_encoder_folder, "mean", True, **{**VARIANTS[variant], "dropout": 0.5})
    for pad_to in (None, 48):
        encoder.train()
        assert not torch.allclose(encoder(tokens, pad_to), encoder(tokens, pad_to), atol=1e-4)
        encoder.eval()
        assert torch.equal(encoder(tokens, pad_to), encoder(tokens, pad_to))


def test_an_adapter_of_another_kind_is_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_encoder_folder, "cls", True), tmp_path / "plain")
    save_adapter(adapted(tiny_encoder_folder, "cls", True, use_dora=True), tmp_path / "dora")
    with pytest.raises(EncoderError, match=r"it lacks .*magnitude"):
        load_adapter(adapted(tiny_encoder_folder, "cls", False, use_dora=True), tmp_path / "plain")
    with pytest.raises(EncoderError, match="which the encoder lacks"):
        load_adapter(adapted(tiny_encoder_folder, "cls", False), tmp_path / "dora")


@pytest.mark.parametrize("named", ["LayerNorm", "encoder", "query", "qury_proj"])
def test_only_linear_layers_are_adapted(tiny_encoder_folder: Path, named: str) -> None:
    encoder = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    message = rf"names {named}, which is no linear layer of .*; it has query_proj, key_proj"
    with pytest.raises(EncoderError, match=message):
        add_lora(encoder, LoraConfig(target_modules=("query_proj", named)))


ATTENTION = {
    "deberta-v2": ["query_proj", "key_proj", "value_proj"],
    "bert": ["query", "key", "value"],
    "roberta": ["query", "key", "value"],
    "electra": ["query", "key", "value"],
    "esm": ["query", "key", "value"],
    "distilbert": ["q_lin", "k_lin", "v_lin"],
    "mpnet": ["q", "k", "v"],
    "llama": ["q_proj", "k_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "gpt2": ["c_attn"],
}


@pytest.mark.parametrize("model_type", ATTENTION)
def test_the_attention_of_an_architecture_is_adapted_where_no_layers_are_named(
    model_type: str, tokens: TokenTable, tmp_path: Path
) -> None:
    folder = write_architecture(tmp_path / "encoder", model_type)
    plain = load_encoder(EncoderConfig(source=str(folder)))(tokens)
    encoder = adapted(folder, "mean", moved=False)
    layers = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and "lora_A" in name
    }
    assert layers == set(ATTENTION[model_type])
    torch.testing.assert_close(encoder(tokens), plain, rtol=1e-5, atol=1e-6)
    encoder(tokens).square().sum().backward()
    reached = {
        name.split(".lora_B")[0].rsplit(".", 1)[-1]
        for name, parameter in encoder.named_parameters()
        if "lora_B" in name and parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert reached == layers


@pytest.mark.parametrize("model_type", ["gpt2", "distilbert"])
def test_an_adapter_found_by_architecture_is_read_back(
    model_type: str, tokens: TokenTable, tmp_path: Path
) -> None:
    folder = write_architecture(tmp_path / "encoder", model_type)
    encoder = adapted(folder, "mean", moved=True).eval()
    save_adapter(encoder, tmp_path / "adapter")
    again = adapted(folder, "mean", moved=False).eval()
    assert not torch.allclose(again(tokens), encoder(tokens), atol=1e-3)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again(tokens), encoder(tokens))


def test_an_architecture_whose_attention_is_not_known_asks_for_names(tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "encoder", "ctrl")
    with pytest.raises(EncoderError, match=r"of CTRLModel .*target_modules: it has Wq, Wk, Wv"):
        add_lora(load_encoder(EncoderConfig(source=str(folder))), LoraConfig())
