"""The encoder: polyBERT's sizes, batching that does not change vectors, LoRA that starts at nothing
and alone is trained.
"""

import shutil
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.batching import MAX_BATCH_TOKENS, batches_of_each_pass, length_batches
from embedcache.encoder.loading import encoder_digest, load_encoder
from embedcache.encoder.lora import add_lora, load_adapter, save_adapter
from embedcache.encoder.model import encode_all
from embedcache.encoder.standin import is_standin, write_standin
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


def config(folder: Path, pooling: str = "mean") -> EncoderConfig:
    return EncoderConfig(source=str(folder), pooling=pooling)


@pytest.fixture(scope="module")
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    return tokenize(load_tokenizer(config(tiny_encoder_folder)), STRINGS, 512, 269).tokens


def test_the_stand_in_has_polyberts_sizes(tmp_path: Path) -> None:
    write_standin(tmp_path / "polybert", "polybert")
    encoder = load_encoder(config(tmp_path / "polybert"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 25_193_544
    assert (encoder.width, encoder.max_length) == (600, 512)
    found = encoder.model.config.to_dict()
    published = {
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 512,
        "vocab_size": 269,
        "relative_attention": False,
        "type_vocab_size": 0,
        "pad_token_id": 3,
        "layer_norm_eps": 1e-7,
    }
    assert {key: found[key] for key in published} == published
    add_lora(encoder, LoraConfig())
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 691_200


def test_stand_ins_are_marked_seeded_and_never_overwrite_anything_else(
    tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    write_standin(tmp_path / "a", "tiny", seed=1)
    write_standin(tmp_path / "b", "tiny", seed=1)
    assert is_standin(tmp_path / "a")
    assert (
        encoder_digest(config(tmp_path / "a"))
        == encoder_digest(config(tmp_path / "b"))
        != encoder_digest(config(tiny_encoder_folder))
    )
    (tmp_path / "a" / "thesis.txt").write_text("ten years")
    with pytest.raises(EncoderError, match=r"also holds thesis\.txt"):
        write_standin(tmp_path / "a", "tiny", seed=2)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "ten years"
    (tmp_path / "a" / "thesis.txt").unlink()
    write_standin(tmp_path / "a", "tiny", seed=2)
    assert encoder_digest(config(tmp_path / "a")) != encoder_digest(config(tmp_path / "b"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(EncoderError, match="not a stand-in"):
        write_standin(tmp_path / "mine", "tiny")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"
    assert not is_standin("kuelumbus/polyBERT")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_batching_and_padding_do_not_change_vectors(
    tiny_encoder_folder: Path, tokens: TokenTable, pooling: str
) -> None:
    encoder = load_encoder(config(tiny_encoder_folder, pooling))
    vectors = encoder(tokens)
    torch.testing.assert_close(encoder(tokens, pad_to=128), vectors, rtol=1e-5, atol=1e-6)
    for number in range(len(STRINGS)):
        torch.testing.assert_close(
            encoder(tokens.take(torch.tensor([number])))[0], vectors[number], rtol=1e-5, atol=1e-6
        )
    order = torch.tensor([3, 0, 5, 3])
    torch.testing.assert_close(encoder(tokens.take(order)), vectors[order], rtol=1e-5, atol=1e-6)
    assert vectors.std(0).min() > 0
    assert encoder(tokens.take(torch.zeros(0, dtype=torch.int64))).shape == (0, encoder.width)


def test_pooling_is_the_published_fingerprints_formula(tiny_encoder_folder: Path) -> None:
    tokenizer = load_tokenizer(config(tiny_encoder_folder))
    model = AutoModel.from_pretrained(tiny_encoder_folder)
    batch = tokenizer(STRINGS, padding=True, return_tensors="pt")
    hidden = model.eval()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
    published = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    tokens = tokenize(tokenizer, STRINGS, 512, 269).tokens
    torch.testing.assert_close(
        load_encoder(config(tiny_encoder_folder))(tokens), published, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        load_encoder(config(tiny_encoder_folder, "cls"))(tokens), hidden[:, 0], rtol=1e-5, atol=1e-6
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(60, 400))
def test_length_batches_hold_every_string_once_within_the_budget(
    lengths: list[int], max_tokens: int
) -> None:
    batches = length_batches(torch.tensor(lengths), max_tokens)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[number] for number in batch.tolist()) <= max_tokens


def test_length_batches_save_padding() -> None:
    lengths = torch.tensor(
        [8, 17, 19, 24, 28, 30, 31, 31, 32, 34, 34, 37, 39, 46, 47, 53, 53, 55, 56, 62, 77]
    )
    padded = sum(
        len(batch) * int(lengths[batch].max()) for batch in length_batches(lengths, 16_384)
    )
    assert padded < 1030 < 21 * 77
    assert len(length_batches(torch.full((21,), 77), 16_384)) == 1


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=60))
def test_a_pass_holds_as_many_batches_as_fit(lengths: list[int]) -> None:
    batches = [torch.tensor([number]) for number in range(len(lengths))]
    passes = batches_of_each_pass(torch.tensor(lengths), batches)
    assert [ids for found in passes for ids in found] == batches
    tokens = [[lengths[int(ids)] for ids in found] for found in passes]
    assert all(sum(found) <= MAX_BATCH_TOKENS for found in tokens)
    assert all(sum(found) + more[0] > MAX_BATCH_TOKENS for found, more in pairwise(tokens))


def test_encode_all_equals_forward(tiny_encoder_folder: Path, tokens: TokenTable) -> None:
    encoder = load_encoder(config(tiny_encoder_folder))
    found = torch.from_numpy(encode_all(encoder, tokens, batch_tokens=20, progress=False))
    torch.testing.assert_close(found, encoder(tokens), rtol=1e-5, atol=1e-6)


def test_fresh_lora_changes_nothing_and_gradients_reach_it_alone(
    tiny_encoder_folder: Path, tokens: TokenTable
) -> None:
    plain = load_encoder(config(tiny_encoder_folder))
    adapted = load_encoder(config(tiny_encoder_folder))
    add_lora(adapted, LoraConfig(r=4))
    torch.testing.assert_close(adapted(tokens), plain(tokens), rtol=1e-6, atol=1e-7)
    adapted(tokens).square().sum().backward()
    with_gradient = {
        name for name, parameter in adapted.named_parameters() if parameter.grad is not None
    }
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)
    assert any(
        parameter.grad.abs().max() > 0
        for name, parameter in adapted.named_parameters()
        if "lora_B" in name
    )


def test_only_loras_dropout_is_active_in_training(
    tiny_encoder_folder: Path, tokens: TokenTable
) -> None:
    encoder = load_encoder(config(tiny_encoder_folder)).train()
    torch.testing.assert_close(encoder(tokens), encoder(tokens), rtol=0, atol=0)
    add_lora(encoder, LoraConfig(r=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    encoder.train()
    assert not torch.equal(encoder(tokens), encoder(tokens))
    encoder.eval()
    assert torch.equal(encoder(tokens), encoder(tokens))


def test_adapters_are_pefts_own(
    tiny_encoder_folder: Path, tokens: TokenTable, tmp_path: Path
) -> None:
    encoder = load_encoder(config(tiny_encoder_folder, "cls"))
    add_lora(encoder, LoraConfig(r=4))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    save_adapter(encoder, tmp_path / "adapter")
    wanted = encoder.eval()(tokens)
    ids, mask = tokens.padded()
    theirs = peft.PeftModel.from_pretrained(
        AutoModel.from_pretrained(tiny_encoder_folder), tmp_path / "adapter"
    ).eval()
    torch.testing.assert_close(
        theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0],
        wanted,
        rtol=1e-4,
        atol=1e-5,
    )
    again = load_encoder(config(tiny_encoder_folder, "cls"))
    add_lora(again, LoraConfig(r=4))
    assert not torch.allclose(again.eval()(tokens), wanted, atol=1e-3)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again.eval()(tokens), wanted)
    with pytest.raises(EncoderError, match="no adapter"):
        load_adapter(again, tmp_path)


def test_broken_folders_are_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no safetensors weights"):
        load_encoder(config(tmp_path))
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    digest = encoder_digest(config(folder))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert encoder_digest(config(folder)) != digest
    weights.write_bytes(content[:100])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(config(folder))
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="its weights as a pickle alone"):
        load_encoder(config(folder))


def test_lora_on_modules_that_are_not_there(tiny_encoder_folder: Path) -> None:
    with pytest.raises(EncoderError, match=r"names q_proj.*query_proj"):
        add_lora(load_encoder(config(tiny_encoder_folder)), LoraConfig(target_modules=("q_proj",)))
