"""The embeddings of a string's tokens, read and replaced: what attributions are taken of.

Axes: L tokens of one string, K points, W the width of token embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from embedcache.encoder.model import StringEncoder
from embedcache.encoder.prefix import base_of
from embedcache.encoder.tokenizer import PREFIX
from embedcache.encoder.tokens import TokenTable, offsets_of


class TokenSpans(NamedTuple):
    """The L tokens of one string, and which of its characters each stands for."""

    ids: Int[Tensor, " L"]
    pieces: tuple[str, ...]  # as the vocabulary has them
    spans: tuple[tuple[int, int], ...]  # (0, 0) for none: [CLS], [SEP], a dummy prefix
    is_added: tuple[bool, ...]  # [CLS], [SEP] and their like, which every string has


def token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenSpans:
    """Return the tokens of a string that the encoder can read."""
    found = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids = found["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    added = [bool(each) for each in found["special_tokens_mask"]]
    spans = [
        (0, 0) if is_added or piece == PREFIX else (start, end)
        for piece, (start, end), is_added in zip(
            pieces, found["offset_mapping"], added, strict=True
        )
    ]
    return TokenSpans(torch.tensor(ids), tuple(pieces), tuple(spans), tuple(added))


def masked_id(tokenizer: PreTrainedTokenizerBase, num_ids: int) -> int:
    """Return the id of the token that stands for any: [MASK], or the padding of who has none."""
    for token in (tokenizer.mask_token_id, tokenizer.pad_token_id):
        if token is not None and token < num_ids:
            return int(token)
    return 0


@torch.no_grad()
def embeddings_of(encoder: StringEncoder, ids: Int[Tensor, " L"]) -> Float[Tensor, "L W"]:
    """Return what the encoder looks up for tokens, in fp32, before positions are added."""
    embedded: Tensor = _lookup(encoder)(ids.unsqueeze(0))
    return embedded[0].float()


def encode_points(
    encoder: StringEncoder, ids: Int[Tensor, " L"], points: Float[Tensor, "K L W"]
) -> Float[Tensor, "K E"]:
    """Return the vectors of one string, had its tokens these embeddings; differentiable in them."""
    num_points, length = points.shape[:2]
    lengths = torch.full((num_points,), length)
    table = TokenTable(ids.repeat(num_points), offsets_of(lengths))
    with _replaced(encoder, points):
        vectors: Tensor = encoder(table, pad_to=length)  # as Hugging Face computes them
    return vectors


@contextmanager
def _replaced(encoder: StringEncoder, points: Float[Tensor, "K L W"]) -> Iterator[None]:
    """Let the encoder look up these embeddings, whatever the tokens are."""
    handle = _lookup(encoder).register_forward_hook(lambda *_: points)
    try:
        yield
    finally:
        handle.remove()


def _lookup(encoder: StringEncoder) -> nn.Module:
    base: nn.Module = base_of(encoder.model)
    found = base.get_input_embeddings()  # type: ignore[operator]  # of Hugging Face's models
    assert isinstance(found, nn.Module)
    return found
