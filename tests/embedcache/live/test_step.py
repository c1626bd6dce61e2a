"""Every way of encoding gives the gradients of encoding each row alone; a step left unfinished is
an error.
"""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

import embedcache
from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.standin import write_standin
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import StaleCacheError, UnfinishedStepError
from embedcache.live.sources import CachedVectors, PerMicrobatch, PerRow, VectorSource
from embedcache.live.step import LiveEncoder

STRINGS = [
    "[*]CC[*]",
    "[*]CCO[*]",
    "[*]CC([*])C",
    "[*]c1ccc([*])[nH]1",
    "[*]NCC(=O)N1CCCC1C(=O)[*]",
]


@pytest.fixture(scope="module")
def tokens(tiny_encoder_folder: Path) -> TokenTable:
    return tokenize(
        load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder))), STRINGS, 512, 269
    ).tokens


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


def gradients(
    encoder: StringEncoder, source: VectorSource, ids: torch.Tensor, num_micro_batches: int
) -> list[torch.Tensor]:
    """Return the encoder's gradients of a loss that treats every row differently."""
    encoder.zero_grad()
    readout = torch.linspace(-1, 1, len(ids) * encoder.width).view(len(ids), encoder.width)
    source.begin_step(ids, num_micro_batches)
    for part in torch.arange(len(ids)).tensor_split(num_micro_batches):
        vectors, index, _ = source.read(ids[part])
        loss = ((vectors[index] * readout[part]).sum(1) ** 2).sum()
        loss.backward()
    source.end_step()
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]


@examples(cost=6)
@given(
    ids=st.lists(st.integers(0, len(STRINGS) - 1), min_size=4, max_size=23),
    num_micro_batches=st.integers(1, 4),
)
def test_gradients_equal_those_of_encoding_each_row(
    encoder: StringEncoder, tokens: TokenTable, ids: list[int], num_micro_batches: int
) -> None:
    string_id = torch.tensor(ids)
    wanted = gradients(encoder, PerRow(encoder, tokens, pad_to=64), string_id, 1)
    scale = max(gradient.abs().max() for gradient in wanted)
    assert scale > 0
    # every string is a batch of its own, encoded twice
    two_passes = LiveEncoder(encoder, tokens, memory_bytes=1)
    for source in (
        PerRow(encoder, tokens),
        PerMicrobatch(encoder, tokens),
        LiveEncoder(encoder, tokens),
        two_passes,
    ):
        for found, gradient in zip(
            gradients(encoder, source, string_id, num_micro_batches), wanted, strict=True
        ):
            assert (found - gradient).abs().max() <= 1e-5 * scale


@examples(cost=10)
@given(
    ids=st.lists(st.integers(0, len(STRINGS) - 1), min_size=4, max_size=23),
    num_parts=st.integers(1, 4),
)
def test_a_plain_loop_needs_no_engine(
    encoder: StringEncoder, tokens: TokenTable, ids: list[int], num_parts: int
) -> None:
    string_id = torch.tensor(ids)
    wanted = gradients(encoder, PerRow(encoder, tokens), string_id, 1)
    readout = torch.linspace(-1, 1, len(ids) * encoder.width).view(len(ids), encoder.width)
    encoder.zero_grad()
    live = LiveEncoder(encoder, tokens)
    with live.step(string_id):
        for part in torch.arange(len(ids)).tensor_split(num_parts):
            ((live.vectors(string_id[part]) * readout[part]).sum(1) ** 2).sum().backward()
            with torch.no_grad():
                # evaluation takes no part in the step
                assert live.vectors(string_id[part]).shape == (len(part), encoder.width)
        assert all(parameter.grad is None for parameter in encoder.parameters())
    scale = max(gradient.abs().max() for gradient in wanted)
    for parameter, gradient in zip(
        (p for p in encoder.parameters() if p.requires_grad), wanted, strict=True
    ):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * scale


def test_live_equals_cached_with_fresh_lora(tiny_encoder_folder: Path, tokens: TokenTable) -> None:
    plain = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    with torch.no_grad():
        cached = CachedVectors(plain(tokens))
    adapted = load_encoder(EncoderConfig(source=str(tiny_encoder_folder)))
    add_lora(adapted, LoraConfig())
    live = LiveEncoder(adapted, tokens)
    torch.testing.assert_close(
        live.vectors_of_all_strings(), cached.vectors_of_all_strings(), rtol=1e-6, atol=1e-6
    )
    ids = torch.tensor([4, 0, 4, 2])
    live.begin_step(ids, 1)
    vectors, index, _ = live.read(ids)
    kept, kept_index, _ = cached.read(ids)
    adapted.eval()
    torch.testing.assert_close(vectors[index], kept[kept_index], rtol=1e-6, atol=1e-6)
    assert kept.std() > 0


def test_a_step_encodes_each_distinct_string_once(
    encoder: StringEncoder, tokens: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = StringEncoder.forward
    monkeypatch.setattr(
        StringEncoder,
        "forward",
        lambda self, table, **more: seen.append(table.num_strings) or forward(self, table, **more),
    )
    live, ids = LiveEncoder(encoder, tokens), torch.tensor([0, 3, 3, 0, 3, 0, 0, 3])
    # the first step also measures what the encoder's activations take
    gradients(encoder, live, ids, 4)
    del seen[:]
    gradients(encoder, live, ids, 4)
    assert seen == [2]


@pytest.mark.parametrize("ending", ["engine", "block", "two passes", "abandoned"])
def test_a_step_leaves_no_tensor_behind(
    encoder: StringEncoder, tokens: TokenTable, ending: str
) -> None:
    # V's graph was once held by V's own hook: through C++, so that Python's collector could not see
    # it, and 3 MB of every step stayed at polyBERT's size.
    live = LiveEncoder(encoder, tokens, memory_bytes=1 if ending == "two passes" else None)
    ids = torch.arange(4)

    def step() -> None:
        if ending == "block":
            with live.step(ids):
                live.vectors(ids).sum().backward()
        elif ending == "abandoned":
            live.begin_step(ids, 2)
            live.vectors(ids).sum().backward()
            live.abandon_step()
        else:
            gradients(encoder, live, ids, 2)
        encoder.zero_grad()

    step()
    gc.freeze()  # what there was before is neither collected nor counted, which takes a second
    alive = []
    for _ in range(3):
        step()
        step()
        gc.collect()
        alive.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    gc.unfreeze()
    assert alive[1] == alive[2]


def test_a_gradient_that_would_be_lost_is_an_error(
    encoder: StringEncoder, tokens: TokenTable
) -> None:
    live, ids = LiveEncoder(encoder, tokens), torch.tensor([0, 1, 2, 0])

    def loss(part: torch.Tensor) -> torch.Tensor:
        return live.vectors(part).pow(2).sum()

    live.begin_step(ids, 2)
    with pytest.raises(UnfinishedStepError, match="never reached the encoder"):
        live.begin_step(ids, 2)
    with pytest.raises(UnfinishedStepError, match="never reached the encoder"):
        live.vectors_of_all_strings()
    live.abandon_step()

    live.begin_step(ids, 2)
    loss(ids[:2])  # its backward is forgotten
    with pytest.raises(
        UnfinishedStepError, match="micro-batch 1 of 2 was read, but backward was not called"
    ):
        loss(ids[2:]).backward()
    live.abandon_step()

    live.begin_step(ids, 2)
    loss(ids[:2]).backward()
    with pytest.raises(UnfinishedStepError, match="read every announced micro-batch"):
        live.end_step()
    with pytest.raises(UnfinishedStepError, match="outside a step"):
        live.read(ids)  # the step is over, though it failed

    live.begin_step(ids, 1)
    loss(ids).backward()
    with pytest.raises(UnfinishedStepError, match="more often"):
        live.read(ids)
    live.end_step()

    live.begin_step(ids[:2], 1)
    with pytest.raises(UnfinishedStepError, match="was not told of"):
        live.read(ids)
    live.abandon_step()
    with pytest.raises(UnfinishedStepError, match="outside a step"):
        live.read(ids)
    with pytest.raises(UnfinishedStepError, match="without begin_step"):
        live.end_step()


def test_a_block_that_loses_a_gradient_is_an_error(
    encoder: StringEncoder, tokens: TokenTable
) -> None:
    live, ids = LiveEncoder(encoder, tokens), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UnfinishedStepError, match="no gradient arrived"), live.step(ids):
        pass
    with pytest.raises(UnfinishedStepError, match="outside a step"):
        live.read(ids)  # the step is over, though it failed

    def forget_the_second() -> None:
        with live.step(ids):
            live.vectors(ids[:2]).sum().backward()
            live.vectors(ids[2:]).sum()

    def fail_inside() -> None:
        with live.step(ids):
            live.vectors(ids[:2])
            raise ZeroDivisionError

    with pytest.raises(UnfinishedStepError, match="micro-batch 2 of 2"):
        forget_the_second()
    with pytest.raises(ZeroDivisionError):  # which an error about the step must not hide
        fail_inside()
    with live.step(ids):
        live.vectors(ids).sum().backward()
    live.vectors_of_all_strings()


def test_tables_are_made_without_dropout_and_leave_the_mode_alone(
    encoder: StringEncoder, tokens: TokenTable
) -> None:
    live = LiveEncoder(encoder.train(), tokens)
    torch.testing.assert_close(
        live.vectors_of_all_strings(), live.vectors_of_all_strings(), rtol=0, atol=0
    )
    assert encoder.training
    assert not live.vectors_of_all_strings().requires_grad


def test_the_documented_example_trains_the_encoder(
    tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = embedcache.__doc__.splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    monkeypatch.chdir(tiny_encoder_folder.parent)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code.replace('source="encoder"', f'source="{tiny_encoder_folder.name}"'), names)
    moved = [
        p.abs().max() for name, p in names["live"].encoder.named_parameters() if "lora_B" in name
    ]
    assert moved
    assert all(size > 0 for size in moved)


def test_from_cache_reads_strings_and_refuses_another_encoder(
    built_study: Any, tmp_path: Path
) -> None:
    cache = built_study.open()
    live = LiveEncoder.from_cache(cache, "polymer")
    # fresh adapters
    torch.testing.assert_close(
        live.vectors_of_all_strings(), cache.strings("polymer").embeddings, rtol=1e-5, atol=1e-5
    )
    ids = torch.from_numpy(cache.rows().string_id[:32, 0]).long()
    with live.step(ids):
        live.vectors(ids).square().sum().backward()
    write_standin(tmp_path / "other", "tiny", seed=9)
    with pytest.raises(StaleCacheError, match="not the encoder"):
        LiveEncoder.from_cache(cache, "polymer", source=str(tmp_path / "other"))
