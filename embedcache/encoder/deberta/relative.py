"""Encoders with relative positions (DeBERTa-v2 and v3 checkpoints): the position table is cut to
the rows that the strings of a batch can reach.

Every layer projects the whole table (512 rows in base models) in every pass, and multiplies every
query and key with all of it, although the tokens of a string of L are at most L - 1 apart. The
model is lent the middle of its table for the time of one call, in the manner of `prefix`; rows that
are read are the same rows, so the vectors are the same bit for bit, and rows that nothing reads had
a gradient of zero anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

# The cut table has a multiple of this many distances: matrix products of odd sizes may sum in
# another order.
_MULTIPLE = 16


class _CutTable(nn.Module):
    """Stands for the position table; gradients reach the whole one."""

    def __init__(self, weight: Float[Tensor, "positions E"]) -> None:
        super().__init__()
        self.weight = weight


@contextmanager
def needed_positions(base: nn.Module, longest: int) -> Iterator[None]:
    """Cut the model's table of relative positions to those within strings of `longest` tokens.

    The whole table is back when the context ends. Models without such a table are left alone.
    """
    if not isinstance(base, DebertaV2Model) or not base.encoder.relative_attention:
        yield
        return
    encoder: Any = base.encoder
    attentions = [layer.attention.self for layer in encoder.layer]
    table = encoder.rel_embeddings
    whole_sizes = [attention.pos_ebd_size for attention in attentions]
    span = table.weight.shape[0] // 2
    kept = needed_span(longest, span, encoder.position_buckets, encoder.max_relative_positions)
    encoder.rel_embeddings = _CutTable(table.weight[span - kept : span + kept])
    for attention in attentions:
        attention.pos_ebd_size = kept
    try:
        yield
    finally:
        encoder.rel_embeddings = table
        for attention, size in zip(attentions, whole_sizes, strict=True):
            attention.pos_ebd_size = size


def needed_span(longest: int, span: int, buckets: int, max_positions: int) -> int:
    """Return how many distances to either side, of the table's `span`, `longest` tokens need.

    Row `span + d` stands for distance d, so distances -R to R need R + 1 to either side. One more
    is kept: on another device the logarithm behind a bucket may be rounded otherwise.
    """
    reach = torch.tensor(longest - 1)
    if buckets > 0:
        reach = make_log_bucket_position(reach, buckets, max_positions)
    needed = int(reach) + 2
    return min(span, -(-needed // _MULTIPLE) * _MULTIPLE)
