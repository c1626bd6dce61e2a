"""Encoders of the published architectures: the same vectors, gradients and files as plain Hugging
Face and PEFT have of them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import REAL, SIZES, write_architecture
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from embedcache.build.vectors import StringVectors
from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.batching import length_batches
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora, save_adapter
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import EncoderError, TokenizerError
from embedcache.live.bounded import encode_bounded
from embedcache.live.step import LiveEncoder

STRINGS = [
    "[*]CC[*]",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
    "[*]CCO[*]",
    "[*]CC([*])C(=O)OCC[N+](C)(C)C",
    "[*]CC([*])c1ccc(C(=O)Oc2ccccc2)cc1",
]
SHARED = "albert"  # its passes share one layer, so none of them is below the adapted ones
PLAIN_PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"  # PEFT 0.21 and transformers 5


@pytest.fixture(scope="module", params=REAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("architecture") / "encoder"
    settings = REAL[name].settings | {"num_hidden_layers": 3}
    return write_architecture(made, tokenizer_of=tiny_encoder_folder, **settings)


@pytest.fixture(scope="module")
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    tokenizer = load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder)))
    return tokenize(tokenizer, STRINGS, 60, 269).tokens


def adapted(folder: Path, moved: bool = True, **settings: Any) -> StringEncoder:
    """Return the encoder with adapters, whose B has left zero where they are moved."""
    encoder = load_encoder(EncoderConfig(source=str(folder)))
    torch.manual_seed(0)
    add_lora(encoder, LoraConfig(r=4, **{"dropout": 0.0, **settings}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad and moved:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder.train()


def alone(model: Any, tokens: TokenTable) -> Iterator[Tensor]:
    """Yield every string's mean-pooled vector, by a pass without padding or mask."""
    for begin, end in zip(tokens.offsets[:-1].tolist(), tokens.offsets[1:].tolist(), strict=True):
        yield model(input_ids=tokens.values[begin:end].unsqueeze(0)).last_hidden_state[0].mean(0)


def gradients(encoder: StringEncoder) -> Tensor:
    return torch.cat([each.grad.flatten() for each in encoder.parameters() if each.requires_grad])


def assert_gradients(found: Tensor, wanted: Tensor) -> None:
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_cache_holds_what_the_plain_model_gives_each_string_alone(
    folder: Path, make_study: Callable[..., Any], tmp_path: Path
) -> None:
    study = make_study(tmp_path).but(encoder={"source": str(folder)})
    study.build()
    table = study.open().strings("polymer")
    with torch.no_grad():
        wanted = torch.stack(list(alone(AutoModel.from_pretrained(folder).eval(), table.tokens)))
    torch.testing.assert_close(table.embeddings, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - wanted.mean(0)).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_heads_of_tasks_and_poolers_change_nothing_whether_there_or_not(
    kind: Any, folder: Path, tokens: TokenTable, tmp_path: Path
) -> None:
    base = AutoModel.from_pretrained(folder)
    task = kind.from_config(base.config)
    own = getattr(task, base.base_model_prefix)
    own.load_state_dict({key: base.state_dict()[key] for key in own.state_dict()})
    task.save_pretrained(tmp_path)
    found, wanted = (load_encoder(EncoderConfig(source=str(each))) for each in (tmp_path, folder))
    assert torch.equal(found(tokens), wanted(tokens))


def test_the_attention_is_adapted_in_every_layer_and_fresh_adapters_change_nothing(
    name: str, folder: Path, tokens: TokenTable
) -> None:
    encoder = adapted(folder, moved=False)
    plain = load_encoder(EncoderConfig(source=str(folder)))(tokens)
    torch.testing.assert_close(encoder(tokens), plain, rtol=1e-5, atol=1e-6)
    found = [
        key.split(".lora_A")[0].rsplit(".", 1)[-1]
        for key, parameter in encoder.named_parameters()
        if parameter.requires_grad and "lora_A" in key
    ]
    num_layers = 1 if name == SHARED else 3
    assert sorted(found) == sorted(REAL[name].targets * num_layers)


@pytest.mark.parametrize("memory_bytes", [None, 1])
def test_a_steps_gradients_are_those_of_every_row_encoded_alone(
    folder: Path, tokens: TokenTable, memory_bytes: int | None
) -> None:
    encoder = adapted(folder)
    string_id = torch.tensor([3, 0, 1, 1, 4, 3, 0, 0, 2])
    readout = torch.randn(len(string_id), encoder.width)
    for row, string in enumerate(string_id.tolist()):
        vector = next(alone(encoder.model, tokens.take(torch.tensor([string]))))
        (vector * readout[row]).sum().backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    live = LiveEncoder(encoder, tokens, memory_bytes=memory_bytes)
    with live.step(string_id):
        for part in torch.arange(len(string_id)).split(4):
            (live.vectors(string_id[part]) * readout[part]).sum().backward()
    assert_gradients(gradients(encoder), wanted)


@pytest.mark.slow
def test_both_passes_of_bounded_memory_drop_the_same(folder: Path, tokens: TokenTable) -> None:
    encoder = adapted(folder, dropout=0.3)
    batches = length_batches(tokens.lengths, 50)
    assert len(batches) > 1
    readout = torch.randn(tokens.num_strings, encoder.width)
    found = []
    for bounded in (False, True):
        encoder.zero_grad()
        torch.manual_seed(3)
        if bounded:
            vectors = encode_bounded(encoder, tokens, 50)
            torch.rand(5)
        else:
            vectors = torch.cat([encoder(tokens.take(ids)) for ids in batches])
            vectors = vectors[torch.cat(batches).argsort()]
        (vectors * readout).sum().backward()
        found.append((vectors.detach(), gradients(encoder)))
    assert torch.equal(found[0][0], found[1][0])
    assert_gradients(found[1][1], found[0][1])
    assert not torch.allclose(found[0][0], encoder.eval()(tokens), atol=1e-3)  # it was on


@pytest.mark.parametrize("first_layer", [1, 2])
def test_cached_states_of_the_layers_below_give_the_same_vectors_and_gradients(
    name: str, folder: Path, tokens: TokenTable, first_layer: int
) -> None:
    if name == SHARED:
        with pytest.raises(EncoderError, match=r"AlbertModel .* 3 times through one layer"):
            adapted(folder, first_layer=first_layer)
        return
    encoder = adapted(folder, first_layer=first_layer)
    layers = {
        int(part)
        for key, parameter in encoder.named_parameters()
        if parameter.requires_grad
        for part in key.split(".")
        if part.isdigit()
    }
    assert layers == set(range(first_layer, 3))
    readout = torch.randn(tokens.num_strings, encoder.width)
    (torch.stack(list(alone(encoder.model, tokens))) * readout).sum().backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    cached = replace(tokens, states=encoder.states(tokens, first_layer))
    for parameter in encoder.model.get_base_model().embeddings.parameters():
        parameter.data.fill_(torch.nan)  # not read again
    (encoder(cached) * readout).sum().backward()
    assert_gradients(gradients(encoder), wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings(PLAIN_PEFT)
def test_plain_peft_reads_the_adapter(folder: Path, tokens: TokenTable, tmp_path: Path) -> None:
    encoder = adapted(folder).eval()
    save_adapter(encoder, tmp_path)
    base = AutoModel.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        found = torch.stack(list(alone(theirs, tokens)))
        torch.testing.assert_close(found, encoder(tokens), rtol=1e-4, atol=1e-5)
        fresh = adapted(folder, moved=False).eval()
        assert not torch.allclose(found, fresh(tokens), atol=1e-2)


def test_a_string_over_the_models_positions_is_refused_and_none_below(
    name: str, folder: Path
) -> None:
    config = EncoderConfig(source=str(folder))
    encoder, tokenizer = load_encoder(config), load_tokenizer(config)
    longest = REAL[name].longest
    assert encoder.max_length == longest

    def encoded(num_tokens: int) -> Tensor:
        text = "[*]" + "C" * (num_tokens - 5) + "[*]"  # [CLS], the prefix, both ends, [SEP]
        found = tokenize(tokenizer, [text], encoder.max_length, encoder.num_ids).tokens
        assert len(found.values) == num_tokens
        return encoder(found)

    assert encoded(longest).isfinite().all()
    with pytest.raises(TokenizerError, match=f"longer than the encoder's {longest} positions"):
        encoded(longest + 1)


# What config.json of published encoders holds beside sizes, as older programs wrote it.
OLD_KEYS: dict[str, dict[str, Any]] = {
    "bert": {
        **{"directionality": "bidi", "gradient_checkpointing": False, "use_cache": True},
        **{"pooler_fc_size": 24, "pooler_num_fc_layers": 3, "pooler_type": "first_token_transform"},
        **{"position_embedding_type": "absolute", "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    },
    "roberta": {"bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5},
    "albert": {
        **{"embedding_size": 16, "down_scale_factor": 1, "gap_size": 0, "inner_group_num": 1},
        **{"net_structure_type": 0, "num_hidden_groups": 1, "num_memory_blocks": 0},
        **{"hidden_act": "gelu_new", "pruned_heads": {}, "output_past": True, "num_beams": 1},
    },
    "modernbert": {
        **{"global_attn_every_n_layers": 3, "global_rope_theta": 50.0, "local_rope_theta": 20.0},
        **{"local_attention": 8, "deterministic_flash_attn": False, "reference_compile": None},
        **{"repad_logits_with_grad": False, "position_embedding_type": "absolute"},
    },
    "deberta-v2": {
        **{"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        **{"share_att_key": True, "pos_att_type": "p2c|c2p", "max_relative_positions": -1},
        **{"position_biased_input": False, "type_vocab_size": 0},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OLD_KEYS)
def test_config_files_of_older_programs_are_read_as_transformers_does(
    model_type: str, tokens: TokenTable, tmp_path: Path
) -> None:
    own = {"model_type": model_type, **SIZES, **OLD_KEYS[model_type], "torch_dtype": "float32"}
    own |= {"transformers_version": "4.6.0", "architectures": ["AnyForMaskedLM"]}
    write_architecture(tmp_path, **(own | {"num_hidden_layers": 3}))
    (tmp_path / "config.json").write_text(json.dumps(own | {"num_hidden_layers": 3}))
    found = load_encoder(EncoderConfig(source=str(tmp_path)))(tokens)
    wanted = torch.stack(list(alone(AutoModel.from_pretrained(tmp_path).eval(), tokens)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_shared_layer_may_be_passed_more_often_than_there_are_weights(
    tokens: TokenTable, tmp_path: Path
) -> None:
    folder = write_architecture(
        tmp_path, **(REAL[SHARED].settings | {"num_hidden_layers": 30, "initializer_range": 0.1})
    )
    found = load_encoder(EncoderConfig(source=str(folder)))(tokens)
    wanted = torch.stack(list(alone(AutoModel.from_pretrained(folder).eval(), tokens)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


OTHERS: dict[str, dict[str, Any]] = {
    "esm": {"emb_layer_norm_before": True},  # a norm behind the last layer
    "mpnet": {},
    "distilbert": {},
    "electra": {"embedding_size": 24},
    "camembert": {},
}
IN_ONE_PIECE: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 16},  # a projection behind the embeddings
    "xlm-roberta-xl": {},  # a norm that is not known here
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OTHERS)
def test_cached_states_serve_others_that_are_built_alike(
    model_type: str, tokens: TokenTable, tmp_path: Path
) -> None:
    folder = write_architecture(tmp_path / "encoder", model_type, **OTHERS[model_type])
    encoder = adapted(folder, first_layer=1)
    readout = torch.randn(tokens.num_strings, encoder.width)
    (encoder(tokens) * readout).sum().backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    cached = replace(tokens, states=encoder.states(tokens, 1))
    (encoder(cached) * readout).sum().backward()
    assert_gradients(gradients(encoder), wanted)


@pytest.mark.parametrize("model_type", IN_ONE_PIECE)
def test_what_cannot_be_run_in_part_is_refused(model_type: str, tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "encoder", model_type, **IN_ONE_PIECE[model_type])
    adapted(folder)
    with pytest.raises(EncoderError, match=r"other states .* set encoder\.lora\.first_layer to 0"):
        adapted(folder, first_layer=1)


def test_a_build_that_cannot_cache_states_is_refused_before_it_encodes(
    tiny_encoder_folder: Path,
    make_study: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StringVectors, "encode_missing", lambda *_: pytest.fail("it encoded"))
    settings = REAL[SHARED].settings
    folder = write_architecture(tmp_path / "encoder", tokenizer_of=tiny_encoder_folder, **settings)
    prefix = {"source": str(folder), "mode": "prefix", "lora": {"first_layer": 1}}
    study = make_study(tmp_path).but(encoder=prefix)
    with pytest.raises(EncoderError, match="through one layer"):
        study.build()
    assert not Path(study.cache.path).exists()
