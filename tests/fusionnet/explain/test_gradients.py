"""Integrated gradients add up to what they explain: exactly where it is linear, to a hundredth for
an encoder, and they say so where they do not.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.token_embeddings import (
    embeddings_of,
    encode_points,
    masked_id,
    token_spans,
)
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from fusionnet.explain.gradients import FEWEST_PARTS, GOOD_GAP, PART_POINTS, integrated_gradients

TEXT = "[*]CC([*])C(=O)OCC[N+](C)(C)C"


def test_of_a_linear_function_shares_are_its_terms() -> None:
    start, end, slopes = torch.randn(3, 5, 4)
    found = integrated_gradients(
        lambda points: torch.stack([(points * slopes).sum((1, 2)), points[:, 2].sum(1)], dim=1),
        start,
        end,
    )
    moved = end - start
    torch.testing.assert_close(found.shares[:, 0], (moved * slopes).sum(1).double())
    wanted = torch.zeros(5, dtype=torch.float64)
    wanted[2] = moved[2].double().sum()
    torch.testing.assert_close(found.shares[:, 1], wanted, rtol=1e-5, atol=1e-6)
    assert found.num_points == FEWEST_PARTS * PART_POINTS
    assert found.is_complete == [True, True]


def test_of_a_product_shares_are_known_by_hand() -> None:
    # f = x y on the way from 0: the integral of t y x over t is x y / 2 for both
    found = integrated_gradients(
        lambda points: points.prod(dim=1), torch.zeros(2, 1), torch.tensor([[3.0], [4.0]])
    )
    torch.testing.assert_close(found.shares[:, 0], torch.tensor([6.0, 6.0], dtype=torch.float64))


def test_the_steep_part_of_the_way_is_halved_until_shares_add_up_and_else_it_is_said() -> None:
    def steep(points: Tensor) -> Tensor:
        return (500 * (points.sum((1, 2)) - 0.52)).sigmoid()[:, None]

    ends = torch.zeros(1, 1), torch.ones(1, 1)
    good = integrated_gradients(steep, *ends)
    assert good.num_points > FEWEST_PARTS * PART_POINTS
    assert good.gap.item() <= GOOD_GAP
    assert good.shares.item() == pytest.approx(1.0, rel=GOOD_GAP)
    bad = integrated_gradients(steep, *ends, most_parts=3)
    assert bad.is_complete == [False]
    assert bad.gap.item() >= abs(bad.shares.item() - 1)


def test_how_many_points_are_computed_at_once_changes_nothing() -> None:
    start, end = torch.randn(2, 3, 2)
    one, many = (
        integrated_gradients(lambda x: x.sum(2).tanh().square(), start, end, at_once)
        for at_once in (1, 5)
    )
    torch.testing.assert_close(one.shares, many.shares)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> StringEncoder:
    return load_encoder(EncoderConfig(source=str(tiny_encoder_folder))).requires_grad_(False)


def test_points_at_the_tokens_own_embeddings_are_the_encoding(
    encoder: StringEncoder, tiny_encoder_folder: Path
) -> None:
    tokenizer = load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder)))
    spans = token_spans(tokenizer, TEXT)
    tokens = tokenize(tokenizer, [TEXT], encoder.max_length, encoder.num_ids).tokens
    assert torch.equal(spans.ids, tokens.values)
    own = embeddings_of(encoder, spans.ids)
    found = encode_points(encoder, spans.ids, torch.stack([own, 0 * own, own]))
    torch.testing.assert_close(found[0], encoder(tokens)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[0])
    assert not torch.allclose(found[1], found[0], atol=1e-2)
    assert torch.equal(encoder(tokens), encoder(tokens)), "the encoder is as it was"


def test_tokens_know_their_characters(tiny_encoder_folder: Path) -> None:
    tokenizer = load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder)))
    spans = token_spans(tokenizer, TEXT)
    assert "".join(TEXT[start:end] for start, end in spans.spans) == TEXT
    assert [piece for piece, added in zip(spans.pieces, spans.is_added, strict=True) if added] == [
        "[CLS]", "[SEP]",
    ]  # fmt: skip
    assert masked_id(tokenizer, 10_000) == tokenizer.convert_tokens_to_ids("[MASK]")
    assert masked_id(tokenizer, tokenizer.mask_token_id) == tokenizer.pad_token_id
    assert masked_id(tokenizer, 1) == 0


def test_shares_of_an_encoder_add_up_to_a_hundredth_and_added_tokens_have_none(
    encoder: StringEncoder, tiny_encoder_folder: Path
) -> None:
    tokenizer = load_tokenizer(EncoderConfig(source=str(tiny_encoder_folder)))
    spans = token_spans(tokenizer, TEXT)
    is_own = ~torch.tensor(spans.is_added)
    masked = torch.where(is_own, masked_id(tokenizer, encoder.num_ids), spans.ids)
    reading = torch.randn(encoder.width, 2)
    found = integrated_gradients(
        lambda points: encode_points(encoder, spans.ids, points) @ reading,
        embeddings_of(encoder, masked),
        embeddings_of(encoder, spans.ids),
    )
    torch.testing.assert_close(
        found.shares.sum(0), found.at_end - found.at_start, rtol=GOOD_GAP, atol=0
    )
    assert (found.shares[~is_own] == 0).all()
    assert (found.shares[is_own] != 0).any(1).all()
