"""An encoder's folder is what others wrote: what is incomplete, damaged or could choose code is
refused by file and key, and what belongs to other tasks does no harm.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import write_architecture
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import encoder_entries, load_encoder
from embedcache.encoder.lora import add_lora, load_adapter, save_adapter
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable, offsets_of
from embedcache.errors import EncoderError, TokenizerError
from embedcache.schema import parse_config

QUERY = "encoder.layer.0.attention.self.query_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_encoder_folder, tmp_path / "encoder")


def config(folder: Path, **more: Any) -> EncoderConfig:
    return EncoderConfig(source=str(folder), **more)


def vectors(folder: Path) -> Tensor:
    """Return what a build would store of two strings."""
    encoder = load_encoder(config(folder))
    texts = ["[*]CC[*]", "[*]CC([*])c1ccccc1"]
    tokenizer = load_tokenizer(config(folder))
    return encoder(tokenize(tokenizer, texts, encoder.max_length, encoder.num_ids).tokens)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def write_weights(folder: Path, weights: Mapping[str, Tensor], name: str = "model") -> None:
    save_file(dict(weights), folder / f"{name}.safetensors", metadata={"format": "pt"})


def without(weights: Tensors, name: str) -> Tensors:
    return {key: value for key, value in weights.items() if key != name}


def spoilt(weights: Tensors, value: float) -> Tensors:
    query = weights[QUERY].clone()
    query[3, 4] = value
    return weights | {QUERY: query}


def third_layer(weights: Tensors) -> Tensors:
    second = {key: value for key, value in weights.items() if key.startswith("encoder.layer.1.")}
    return weights | {key.replace(".1.", ".2.", 1): value.clone() for key, value in second.items()}


def as_masked_lm(weights: Tensors) -> Tensors:
    """Return the tensors as an older masked language model of the same encoder has them."""
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    named = {}
    for key, value in weights.items():
        for new, legacy in old.items():
            key = key.replace(new, legacy)
        named[f"deberta.{key}"] = value
    return named | {
        "deberta.embeddings.position_ids": torch.arange(512).unsqueeze(0),
        "cls.predictions.bias": torch.zeros(3),
        "lm_predictions.lm_head.bias": torch.zeros(3),
    }


WRONG_WEIGHTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (
        lambda weights: without(weights, "embeddings.word_embeddings.weight"),
        r"embeddings\.word_embeddings\.weight is missing",
    ),
    "renamed": (
        lambda weights: without(weights, QUERY) | {QUERY.replace("query", "q"): weights[QUERY]},
        r"query_proj\.weight is missing; .*\.q_proj\.weight is no part of it",
    ),
    "another shape": (
        lambda weights: weights | {QUERY: weights[QUERY][:7].clone()},
        r"query_proj\.weight is \[7, 24\], expected \[24, 24\]",
    ),
    "a layer that config.json leaves out": (third_layer, r"encoder\.layer\.2\..* is no part of it"),
    "foreign": (
        lambda weights: weights | {"other.weight": torch.zeros(2)},
        r"other\.weight is no part of it",
    ),
    "foreign inside the prefix": (
        lambda weights: as_masked_lm(weights) | {"deberta.encoder.other": torch.zeros(2)},
        r"deberta\.encoder\.other is no part of it",
    ),
    "NaN": (lambda weights: spoilt(weights, float("nan")), rf"NaN or infinity.*{re.escape(QUERY)}"),
    "infinite": (
        lambda weights: spoilt(weights, float("-inf")),
        rf"NaN or infinity.*{re.escape(QUERY)}",
    ),
    "quantised": (
        lambda weights: weights | {QUERY: weights[QUERY].to(torch.int8)},
        r"query_proj\.weight .* torch\.int8: quantised weights are not read",
    ),
    "none": (lambda weights: {}, r"more than the 0 that the encoder's weights can be for"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_are_not_the_encoders_are_refused_by_name(case: str, folder: Path) -> None:
    change, message = WRONG_WEIGHTS[case]
    write_weights(folder, change(load_file(folder / "model.safetensors")))
    with pytest.raises(EncoderError, match=message):
        load_encoder(config(folder))


def test_heads_and_legacy_names_of_a_masked_language_model_change_nothing(folder: Path) -> None:
    wanted = vectors(folder)
    write_weights(folder, as_masked_lm(load_file(folder / "model.safetensors")))
    torch.testing.assert_close(vectors(folder), wanted, rtol=0, atol=0)


def test_weights_in_several_files_are_read_and_a_tensor_in_two_is_refused(folder: Path) -> None:
    wanted, whole = vectors(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first, second = dict(list(whole.items())[:9]), dict(list(whole.items())[9:])
    named = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": named}))
    write_weights(folder, first, "a")
    write_weights(folder, second, "b")
    torch.testing.assert_close(vectors(folder), wanted, rtol=0, atol=0)
    write_weights(folder, whole, "b")
    with pytest.raises(EncoderError, match=r"b\.safetensors holds .*, which another weight file"):
        load_encoder(config(folder))
    for content, message in [
        ("{", "index.json is damaged: it is not JSON"),
        ("{}", "has no 'weight_map'"),
        ("[]", "where a mapping is expected"),
        ('{"weight_map": {"x": "../encoder/a.safetensors"}}', "of the same folder"),
        ('{"weight_map": {"x": "weights.bin"}}', "expected the name of a .safetensors file"),
        ('{"weight_map": {"x": 3}}', "gives 3 for x"),
        ('{"weight_map": {"x": "c.safetensors"}}', "names weight files that are not there"),
    ]:
        index.write_text(content)
        with pytest.raises(EncoderError, match=re.escape(message)):
            encoder_entries(config(folder))


CODE: dict[str, Any] = {
    "attn_implementation": "someone/kernel",
    "_attn_implementation": {"": "someone/kernel"},
    "experts_implementation": "someone/kernel",
    "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"},
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "kernel_config": {"kernel_mapping": {"LayerNorm": "someone/kernel:LayerNorm"}},
    "fusion_config": {"patch_embeddings": True},
    "transformers_weights": "../other.safetensors",
    "configuration_files": ["config.5.0.0.json"],
    "per_layer_config": {"0": {"hidden_act": "relu"}},
    "encoder": {"attn_implementation": "someone/kernel"},
}


@pytest.mark.parametrize("key", CODE)
def test_keys_that_could_fetch_or_choose_code_are_refused_and_nothing_runs(
    key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text("from pathlib import Path\nPath('exploded').touch()\n")
    rewrite(folder / "config.json", **{key: CODE[key]})
    named = "encoder.attn_implementation" if key == "encoder" else key
    for read, error in ((load_encoder, EncoderError), (load_tokenizer, TokenizerError)):
        with pytest.raises(error, match=rf"config\.json: '{named}' could fetch or choose code"):
            read(config(folder))
    assert not (folder / "exploded").exists()


def test_keys_without_a_choice_are_let_through(folder: Path) -> None:
    wanted = vectors(folder)
    harmless = {"quantization_config": None, "_attn_implementation_autoset": True}
    rewrite(folder / "config.json", **harmless, torch_dtype="float16", num_labels=10**12)
    torch.testing.assert_close(vectors(folder), wanted, rtol=0, atol=0)


def test_a_damaged_adapter_is_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(config(tiny_encoder_folder))
    add_lora(encoder, LoraConfig(r=2))
    save_adapter(encoder, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    sound = load_file(file)
    name = next(iter(sound))
    for wrong, message in [
        ({**sound, name: sound[name][:1].clone()}, "cannot be loaded: .*size mismatch"),
        ({**sound, name: torch.full_like(sound[name], torch.nan)}, "holds NaN or infinity in"),
    ]:
        save_file(wrong, file)
        with pytest.raises(EncoderError, match=rf"(?s){message}"):
            load_adapter(encoder, tmp_path)
    file.write_bytes(b"no tensors")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_adapter(encoder, tmp_path)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"holds an adapter .* which would not be applied"):
        load_encoder(config(folder))


WRONG_VALUES: list[tuple[str, Any, str]] = [
    ("hidden_size", "x", "hidden_size: Input should be a valid integer (got 'x')"),
    ("hidden_size", 10**9, "'hidden_size' is 1e+09, more than"),
    ("hidden_size", 10**30, "'hidden_size' is 1e+30, more than"),
    ("hidden_size", 36, "embeddings.LayerNorm.bias is [24], expected [36]"),
    ("intermediate_size", 20_000, "describes an encoder of"),
    ("num_hidden_layers", 10**9, "'num_hidden_layers' is 1e+09, more than"),
    ("num_hidden_layers", 500, "'num_hidden_layers' is 500, more than the 36"),
    ("num_attention_heads", 0, "num_attention_heads: Input should be greater than"),
    ("num_attention_heads", 5, "not a multiple of the number of attention heads"),
    ("vocab_size", -1, "vocab_size: Input should be greater than"),
    ("pad_token_id", 1e9, "pad_token_id: Input should be a valid integer"),
    ("pad_token_id", 400, "pad_token_id 400 is no token: vocab_size is 269"),
    ("hidden_act", "evil", "hidden_act 'evil' is no activation function"),
    ("layer_norm_eps", -1.0, "layer_norm_eps: Input should be greater than 0"),
    ("pos_att_type", 7, "'pos_att_type'"),
    ("model_type", "evil", "model_type 'evil' is none that transformers brings"),
    ("model_type", None, "model_type: Input should be a valid string"),
    ("model_type", "t5", "model_type 't5' is no text encoder"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG_VALUES)
def test_a_description_that_no_encoder_can_have_is_refused_by_its_key(
    key: str, value: Any, message: str, folder: Path
) -> None:
    rewrite(folder / "config.json", **{key: value})
    with pytest.raises(EncoderError, match=rf"(?s)config\.json.*{re.escape(message)}"):
        load_encoder(config(folder))


DAMAGED = {
    "cut": (b'{"model_type": ', "it is not JSON"),
    "empty": (b"", "it is not JSON"),
    "a list": (b"[]", "it holds [] where a mapping is expected"),
    "null": (b"null", "it holds None where a mapping is expected"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "it is not UTF-8"),
    "nested too deep to read": (b'{"a": ' + b"[" * 100_000, "nested too deep"),
    "nested too deep to judge": (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deep"),
    "no number": (b'{"layer_norm_eps": NaN}', "NaN is no JSON number"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_refused_by_file(damage: str, folder: Path) -> None:
    content, message = DAMAGED[damage]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        old = (folder / name).read_bytes() if (folder / name).is_file() else None
        (folder / name).write_bytes(content)
        with pytest.raises(EncoderError, match=rf"{name} is damaged: .*{re.escape(message)}"):
            encoder_entries(config(folder))
        if old is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(old)
    encoder_entries(config(folder))


WRONG_TOKENIZERS: list[tuple[str, dict[str, Any], str]] = [
    ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "no readable tokenizer"),
    ("tokenizer.json", {"version": None}, "expected a string"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "'auto_map'"),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["../x.json"]}, "'fast_tokenizer_files'"),
    ("tokenizer_config.json", {"cls_token": 5}, "no readable tokenizer"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG_TOKENIZERS)
def test_a_malformed_tokenizer_is_refused(
    name: str, changes: dict[str, Any], message: str, folder: Path
) -> None:
    rewrite(folder / name, **changes)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(config(folder))


def test_tokens_that_the_encoder_does_not_know_are_refused(tiny_encoder_folder: Path) -> None:
    tokenizer = load_tokenizer(config(tiny_encoder_folder))
    with pytest.raises(TokenizerError, match="gives token 266, the encoder has 266 tokens"):
        tokenize(tokenizer, ["[*]CC[*]"], 512, 266)


# of 20 positions, those that a string's tokens have
ARCHITECTURES = {"bert": 20, "electra": 20, "roberta": 18, "xlm-roberta": 18, "camembert": 18}
# MobileBERT's tokens see the one after them, so it takes no other padding than its own
ARCHITECTURES |= {"mpnet": 18, "esm": 18, "modernbert": 20, "mobilebert": 20}
OWN_SIZES: dict[str, dict[str, int]] = {
    "mobilebert": {"embedding_size": 24, "intra_bottleneck_size": 12}
}


def small(folder: Path, model_type: str) -> EncoderConfig:
    """Write an encoder of 31 tokens and 20 positions."""
    sizes = {"vocab_size": 31, "max_position_embeddings": 20, **OWN_SIZES.get(model_type, {})}
    return config(write_architecture(folder, model_type, **sizes))


@pytest.mark.parametrize(("model_type", "longest"), ARCHITECTURES.items())
def test_strings_of_every_length_that_is_allowed_have_one_vector_each(
    model_type: str, longest: int, tmp_path: Path
) -> None:
    encoder = load_encoder(small(tmp_path / "encoder", model_type))
    assert encoder.max_length == longest
    lengths = torch.tensor([3, longest, 7, longest - 1])
    values = torch.randint(2, 31, (int(lengths.sum()),))
    tokens = TokenTable(values, offsets_of(lengths))
    with torch.no_grad():
        together = encoder(tokens, pad_to=longest)
        for number, pieces in enumerate(values.split(lengths.tolist())):
            states = encoder.model(input_ids=pieces.unsqueeze(0)).last_hidden_state
            torch.testing.assert_close(together[number], states[0].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "words"), [("fnet", "another vector"), ("xmod", "language")]
)
def test_an_encoder_that_mixes_strings_is_refused(
    model_type: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=words):
        load_encoder(small(tmp_path / "encoder", model_type))


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_a_decoders_first_token_is_no_vector_of_a_string(model_type: str, tmp_path: Path) -> None:
    source = small(tmp_path / "encoder", model_type)
    load_encoder(source)
    with pytest.raises(EncoderError, match=r"pooling cls gives all .* set encoder\.pooling: mean"):
        load_encoder(source.model_copy(update={"pooling": "cls"}))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_an_encoders_first_token_is_one(model_type: str, tmp_path: Path) -> None:
    source = small(tmp_path / "encoder", model_type)
    load_encoder(source.model_copy(update={"pooling": "cls"}))


WRONG_SOURCES: list[tuple[str, str]] = [
    ("no such/folder/at all", "there is no encoder folder no such/folder/at all"),
    ("./encodr", "there is no encoder folder ./encodr; did you mean 'encoder'?"),
    ("encodr", "for a model of this name (HF_HUB_OFFLINE is set)"),
    ("encoder/config.json", "is a file, not a model's folder or a hub id"),
    ("dangling", "is a link to nothing, not a model's folder or a hub id"),
    ("empty", "empty has no config.json, so it is not a Hugging Face model folder"),
    ("half", "there are no safetensors weights in half; give"),
    ("~/no encoder", "no encoder folder"),
]


@pytest.mark.parametrize(("source", "message"), WRONG_SOURCES)
def test_what_is_wrong_with_a_source_is_told_apart(
    source: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("dangling").symlink_to("nowhere")
    Path("empty").mkdir()
    shutil.copytree(folder, "half", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(EncoderError, match=re.escape(message)):
        encoder_entries(parse_config(EncoderConfig, {"source": source}, "test"))


ENCODER_DECODERS = ["t5", "umt5", "bart", "marian", "pegasus"]


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_an_encoder_with_a_decoder_is_refused_in_one_line(model_type: str, folder: Path) -> None:
    text = AutoConfig.for_model(model_type).to_json_string(use_diff=False)
    own = json.loads(text)
    own.pop("kernel_config", None)
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(EncoderError, match=r"is no text encoder: it is encoder and decoder$"):
        load_encoder(config(folder))
