"""DeBERTa-v2 run on strings laid end to end: no padding outside attention, frozen weights cast
once, and a last layer for [CLS] alone where only that is read.

The plain Hugging Face model pads every string to the longest of its batch, casts every frozen
weight to the autocast dtype in every pass (autocast keeps casts of trainable weights alone), casts
one input three times for query, key and value, and computes the last layer for every token although
[CLS] pooling reads one. None of that changes a vector. Here all that acts on single tokens
(projections, norms, feed-forward) runs on the P tokens of the batch, end to end; only attention,
which needs strings apart, is padded. With [CLS] pooling the last layer's keys and values are those
of all tokens, its query, output and feed-forward those of the S [CLS] tokens. Equal to the plain
model in exact arithmetic (tests/embedcache/encoder/deberta/test_packed.py, float64); the plain
model remains what `naive` runs, and what runs encoders that `is_packable` does not know.

K are the tokens that leave a layer: all P, or the S that are asked for.
"""

from typing import Any, NamedTuple, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Layer

from embedcache.encoder.add_norm import add_norm
from embedcache.encoder.deberta.attention import Packing, attend, pad
from embedcache.encoder.deberta.projection import CastWeights, project


class States(NamedTuple):
    """The states between layers, twice: for the sum around a block, and for its products.

    Both are one tensor but where a kernel wrote a copy in the dtype of products (`add_norm`).
    """

    around: Float[Tensor, "K E"]
    operand: Float[Tensor, "K E"]


def is_packable(base: nn.Module) -> TypeGuard[DebertaV2Model]:
    """Return whether this file can run the model: DeBERTa-v2 with absolute positions alone.

    That is polyBERT's architecture.
    """
    if not isinstance(base, DebertaV2Model) or base.z_steps > 1 or base.encoder.conv is not None:
        return False
    return not base.encoder.relative_attention and not base.config.pos_att_type


def embed(
    base: DebertaV2Model, values: Int[Tensor, " P"], packing: Packing
) -> Float[Tensor, "P E"]:
    """Return the states that enter the lowest layer."""
    position = packing.position.unsqueeze(0)
    return base.embeddings(input_ids=values.long().unsqueeze(0), position_ids=position).squeeze(0)


def run_layers(
    base: DebertaV2Model,
    casts: CastWeights,
    states: Float[Tensor, "P E"],
    packing: Packing,
    first_layer: int,
    stop: int,
) -> Float[Tensor, "P E"]:
    """Return what leaves layers `first_layer` to `stop` (not included), for all tokens."""
    return _run_layers(base, casts, states, packing, first_layer, stop).around


def pooled(
    base: DebertaV2Model,
    casts: CastWeights,
    states: Float[Tensor, "P E"],
    packing: Packing,
    first_layer: int,
    pooling: str,
) -> Float[Tensor, "S E"]:
    """Return one fp32 vector per string from the states that enter layer `first_layer`."""
    below = _run_layers(base, casts, states, packing, first_layer, stop=-1)
    last_layer = _layers(base)[-1]
    if pooling == "cls":  # the last layer for [CLS] alone
        return _run_layer(last_layer, casts, below, packing, queries=packing.cls).around.float()
    return mean_over_tokens(_run_layer(last_layer, casts, below, packing).around.float(), packing)


def _run_layers(
    base: DebertaV2Model,
    casts: CastWeights,
    states: Float[Tensor, "P E"],
    packing: Packing,
    first_layer: int,
    stop: int,
) -> States:
    """Return what leaves layers `first_layer` to `stop` (not included), for all tokens."""
    between = States(states, states)
    for layer in _layers(base)[first_layer:stop]:
        between = _run_layer(layer, casts, between, packing)
    return between


def _layers(base: DebertaV2Model) -> Any:
    """Return the layers, a sequence of DebertaV2Layer, whose type the module list does not tell."""
    return base.encoder.layer


def mean_over_tokens(states: Float[Tensor, "P E"], packing: Packing) -> Float[Tensor, "S E"]:
    """Return the mean of each string's tokens."""
    means = [
        pad(states[group.tokens], group).sum(1) / group.length.unsqueeze(1)
        for group in packing.groups
    ]
    return torch.cat(means)


def _run_layer(
    layer: DebertaV2Layer,
    casts: CastWeights,
    states: States,
    packing: Packing,
    queries: Int[Tensor, " S"] | None = None,
) -> States:
    """Return what leaves one layer, for all tokens or for `queries` alone, one a string."""
    attention = layer.attention.self
    projections = [attention.query_proj, attention.key_proj, attention.value_proj]
    if queries is None:
        around = states.around
        query = None
        stacked = project(casts, states.operand, projections)
    else:
        around = states.around.index_select(0, queries)
        query = project(casts, around, projections[:1])
        stacked = project(casts, states.operand, projections[1:])
    context = attend(query, stacked, packing, attention.num_attention_heads)
    attended = _add_and_norm(layer.attention.output, casts, context, around)
    inner = project(casts, attended.operand, [layer.intermediate.dense])
    inner = layer.intermediate.intermediate_act_fn(inner)
    return _add_and_norm(layer.output, casts, inner, attended.around)


def _add_and_norm(
    block: Any,
    casts: CastWeights,
    x: Float[Tensor, "K width_in"],
    around: Float[Tensor, "K E"],
) -> States:
    """Return the norm of the block's projection of x, added to what went around the block."""
    projected = project(casts, x, [block.dense])
    return States(*add_norm(block.LayerNorm, projected, around, state_dtype=around.dtype))
