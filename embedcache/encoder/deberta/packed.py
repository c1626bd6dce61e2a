"""DeBERTa-v2 run on strings laid end to end: no padding outside attention, frozen weights cast
once, and a last layer for [CLS] alone where only that is read.

The plain Hugging Face model pads every string to the longest of its batch, casts every frozen
weight to the autocast dtype in every pass (autocast keeps casts of trainable weights alone), casts
one input three times for query, key and value, and computes the last layer for every token although
[CLS] pooling reads one. None of that changes a vector. Here all that acts on single tokens
(projections, norms, feed-forward) runs on the T tokens of the batch, end to end; only attention,
which needs strings apart, is padded. With [CLS] pooling the last layer's keys and values are those
of all tokens, its query, output and feed-forward those of the S [CLS] tokens. Equal to the plain
model in exact arithmetic (tests/embedcache/test_packed.py, float64); the plain model remains what
`naive` runs, and what runs encoders that `is_packable` does not know.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DebertaV2Model

from embedcache.encoder.deberta.attention import Packing, attend, pad
from embedcache.encoder.deberta.projection import CastWeights, project


def is_packable(base: nn.Module) -> bool:
    """Return whether `run_packed` knows this model: DeBERTa-v2 with absolute positions alone,
    polyBERT's architecture.
    """
    if not isinstance(base, DebertaV2Model) or base.z_steps > 1 or base.encoder.conv is not None:
        return False
    return not base.encoder.relative_attention and not base.config.pos_att_type


def embed(base: DebertaV2Model, values: Int[Tensor, " T"], layout: Packing) -> Float[Tensor, "T H"]:
    """Return the states that enter the lowest layer."""
    return base.embeddings(
        input_ids=values.long().unsqueeze(0), position_ids=layout.position.unsqueeze(0)
    ).squeeze(0)


def run_layers(
    base: DebertaV2Model,
    casts: CastWeights,
    hidden: Float[Tensor, "T H"],
    layout: Packing,
    first: int,
    stop: int | None,
) -> Float[Tensor, "T H"]:
    """Return what leaves layers `first` to `stop`, for all tokens."""
    for layer in base.encoder.layer[first:stop]:
        hidden = _layer(layer, casts, hidden, layout)
    return hidden


def pooled(
    base: DebertaV2Model,
    casts: CastWeights,
    hidden: Float[Tensor, "T H"],
    layout: Packing,
    first: int,
    pooling: str,
) -> Float[Tensor, "S H"]:
    """Return one fp32 vector per string from the states that enter layer `first`."""
    last = len(base.encoder.layer) - 1
    hidden = run_layers(base, casts, hidden, layout, first, last)
    if pooling == "cls":
        return _layer(base.encoder.layer[last], casts, hidden, layout, layout.first).float()
    hidden = _layer(base.encoder.layer[last], casts, hidden, layout).float()
    return torch.cat(
        [
            pad(hidden[group.tokens], group).sum(1) / group.length.unsqueeze(1)
            for group in layout.groups
        ]
    )


def _layer(
    layer: nn.Module,
    casts: CastWeights,
    hidden: Float[Tensor, "T H"],
    layout: Packing,
    queries: Int[Tensor, " S"] | None = None,
) -> Float[Tensor, "_ H"]:
    """Return what leaves one layer, for all tokens or for `queries` alone, one a string."""
    attention = layer.attention.self
    query = None
    residual = hidden
    projections = [attention.query_proj, attention.key_proj, attention.value_proj]
    if queries is not None:
        residual = hidden[queries]
        query = project(casts, residual, projections[:1])
    stacked = project(casts, hidden, projections if query is None else projections[1:])
    context = attend(query, stacked, layout, attention.num_attention_heads)
    attended = _add_and_norm(layer.attention.output, casts, context, residual)
    inner = layer.intermediate.intermediate_act_fn(
        project(casts, attended, [layer.intermediate.dense])
    )
    return _add_and_norm(layer.output, casts, inner, attended)


def _add_and_norm(
    block: nn.Module, casts: CastWeights, x: Float[Tensor, "N I"], residual: Float[Tensor, "N H"]
) -> Float[Tensor, "N H"]:
    return block.LayerNorm(project(casts, x, [block.dense]) + residual)
