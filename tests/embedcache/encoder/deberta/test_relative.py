"""A cut table of relative positions gives the same vectors bit for bit, and the same gradients."""

from itertools import product

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from embedcache.config.encoder import LoraConfig
from embedcache.encoder.deberta.relative import needed_positions, needed_span
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable

MAX_POSITIONS = 128


def model(
    pos_att_type: str = "c2p|p2c",
    share: bool = True,
    buckets: int = 8,
    norm: str = "layer_norm",
    **more: object,
) -> DebertaV2Model:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
    }
    relative = {
        "relative_attention": True,
        "position_buckets": buckets,
        "norm_rel_ebd": norm,
        "share_att_key": share,
        "pos_att_type": pos_att_type.split("|"),
    }
    config = DebertaV2Config(
        **sizes,
        **relative,
        max_position_embeddings=MAX_POSITIONS,
        position_biased_input=False,
        type_vocab_size=0,
        **more,
    )
    made = DebertaV2Model(config).requires_grad_(False).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def table(*lengths: int) -> TokenTable:
    generator = torch.Generator().manual_seed(1)
    return TokenTable(
        torch.randint(0, 50, (sum(lengths),), generator=generator),
        torch.tensor([0, *lengths]).cumsum(0),
    )


@pytest.mark.parametrize(
    ("pos_att_type", "share", "buckets"),
    list(product(["c2p", "p2c", "c2p|p2c"], [True, False], [-1, 8, 32, 256])),
)
@pytest.mark.parametrize("longest", [1, 2, 7, 23, 77, MAX_POSITIONS])
def test_vectors_are_the_same_bit_for_bit(
    pos_att_type: str, share: bool, buckets: int, longest: int
) -> None:
    whole = model(pos_att_type, share, buckets)
    ids, mask = table(longest, max(1, longest - 3)).padded()
    wanted = whole(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    with needed_positions(whole, longest):
        found = whole(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert torch.equal(found[mask], wanted[mask])
    # the whole table is back
    assert torch.equal(whole(input_ids=ids, attention_mask=mask.long()).last_hidden_state, wanted)


@pytest.mark.parametrize(("share", "norm"), [(True, "layer_norm"), (False, "none")])
def test_gradients_are_the_same_those_of_the_table_too(share: bool, norm: str) -> None:
    whole = model(share=share, norm=norm, buckets=32).requires_grad_()
    ids, mask = table(9, 14, 3).padded()
    gradients = []
    for longest in (MAX_POSITIONS, 14):
        whole.zero_grad()
        with needed_positions(whole, longest):
            hidden = whole(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        (hidden[mask] ** 2).sum().backward()
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in whole.named_parameters()
                if parameter.grad is not None
            }
        )
    whole_table, cut = (each["encoder.rel_embeddings.weight"] for each in gradients)
    assert whole_table.shape == cut.shape
    assert cut.abs().max() > 0
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
        )


@pytest.mark.parametrize(("pooling", "first_layer"), [("mean", 0), ("cls", 0), ("mean", 1)])
def test_the_encoder_cuts_and_the_yardstick_does_not(pooling: str, first_layer: int) -> None:
    encoder = StringEncoder(model(buckets=32), pooling)
    add_lora(encoder, LoraConfig(r=3, dropout=0.0, first_layer=first_layer))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    base, seen = encoder.model.get_base_model(), []
    base.encoder.layer[1].attention.self.pos_dropout.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    strings = table(5, 11, 9, 5)
    if first_layer:
        strings = TokenTable(strings.values, strings.offsets, encoder.states(strings, first_layer))
    gradients = []
    for pad_to in (None, 11):
        encoder.zero_grad()
        vectors = encoder(strings, pad_to)
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
        gradients.append(
            [vectors.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)]
        )
    assert set(seen) == {32, 64}  # rows of the table: cut, whole
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_how_many_positions_are_needed() -> None:
    assert needed_span(longest=10, span=128, buckets=-1, max_positions=128) == 16
    # distances to 15, one for rounding: 17
    assert needed_span(longest=16, span=128, buckets=-1, max_positions=128) == 32
    assert needed_span(longest=500, span=128, buckets=-1, max_positions=128) == 128
    # distances below half of the buckets are their own
    assert needed_span(longest=40, span=256, buckets=256, max_positions=512) == 48
    assert needed_span(longest=512, span=256, buckets=256, max_positions=512) == 256
