"""A network in evaluation mode as steps over arrays, the way `RowEvaluator` computes it.

Strings' and categories' summands are tables, so no encoder is needed; attention over a single token
is one matrix, the first layer's none. What is left are a few kinds of steps:

    linear    x W^T + b                     norm      over the last axis, in fp32's eps
    relu      gelu                          residual  x + steps(x)
    members   rows times each member's factors, one member's rows after the other's
    attention x + attention over the row's tokens, of all of them or of the first alone

Axes: U distinct strings of a column, E encoder width, K features of a string, D fusion width, O
outputs of one member.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionnet.inpage.arrays import ArrayWriter
from fusionnet.model.constant_fusion import (
    first_is_linear,
    folded_projection,
    single_token_attention,
)
from fusionnet.model.embeddings import Periodic, PiecewiseLinear
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.members import MemberScaling
from fusionnet.model.modality_tokens import ModalityFusion, ModalityFusionLayer
from fusionnet.model.network import FusionNetwork
from fusionnet.model.single_token import MLPFusion, MLPLayer, SingleTokenFusion

Step = dict[str, Any]


@torch.no_grad()
def network_steps(
    network: FusionNetwork, vectors: Sequence[Float[Tensor, "_ _"]], arrays: ArrayWriter
) -> dict[str, Any]:
    """Return what a network computes of standardised rows; its arrays are appended.

    `vectors` has one matrix [U, E + K] per string column, of the strings that are to be known.
    """
    fusion = network.fusion
    weight, bias = folded_projection(network.projection, fusion)
    blocks = network.projection_blocks(weight)
    tables = RowEvaluator(network, torch.float32).tables(vectors)
    modality = None
    if isinstance(fusion, ModalityFusion):
        kinds = network.by_kind(fusion.kinds.float().unbind())
        modality = {
            "cls": arrays.numbers(fusion.cls),
            "kinds": [arrays.numbers(kind) for kind in kinds.numbers],
        }
    skip = network.linear_skip
    return {
        "string_columns": network.string_columns,
        "tables": [arrays.weights(table) for table in tables],
        "embedding": _embedding(network.numeric_embedding, arrays),
        "groups": [
            {"features": features, "steps": [*_layers(encoder, arrays), _linear(block, arrays)]}
            for features, encoder, block in zip(
                network.numeric.features_of_groups, network.numeric, blocks.numbers, strict=True
            )
        ],
        "bias": None if tables or bias is None else arrays.numbers(bias),
        "modality": modality,
        "width": fusion.norm.normalized_shape[0],
        "steps": [*_fusion(fusion, arrays), _norm(fusion.norm, arrays)],
        "heads": [
            [_layers(head, arrays) for head in network.heads.of_member(member)]
            for member in range(network.heads.num_members)
        ],
        "skip": None if skip is None else arrays.weights(skip.weight),
    }


def _embedding(
    embedding: PiecewiseLinear | Periodic | None, arrays: ArrayWriter
) -> dict[str, Any] | None:
    """Return what makes several features of each one."""
    match embedding:
        case None:
            return None
        case PiecewiseLinear():
            edges = {name: getattr(embedding, name) for name in ("lower", "slope")}
            weights = {name: getattr(embedding, name) for name in ("linear", "bias", "weight")}
            return {
                "kind": "ple",
                **{name: arrays.numbers(each) for name, each in edges.items()},
                **{name: arrays.weights(each) for name, each in weights.items()},
            }
        case Periodic():
            return {
                "kind": "periodic",
                "frequencies": arrays.numbers(embedding.frequencies),
                "weight": arrays.weights(embedding.weight),
                "bias": arrays.weights(embedding.bias),
            }


def _layers(layers: Any, arrays: ArrayWriter) -> list[Step]:
    """Return the layers of an encoder or head; dropout does nothing in evaluation."""
    steps: list[Step] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            steps.append(_linear(layer.weight, arrays, layer.bias))
        elif isinstance(layer, nn.LayerNorm):
            steps.append(_norm(layer, arrays))
        elif isinstance(layer, nn.ReLU):
            steps.append({"do": "relu"})
    return steps


def _fusion(
    fusion: SingleTokenFusion | ModalityFusion | MLPFusion, arrays: ArrayWriter
) -> list[Step]:
    """Return the fusion's layers, as `constant_layers` has them."""
    steps: list[Step] = []
    layers: list[Any] = list(fusion.layers)
    for number, layer in enumerate(layers):
        if number == fusion.first_own:
            steps += _members(fusion.members, arrays)
        if isinstance(layer, ModalityFusionLayer):
            is_last = number == len(layers) - 1
            steps += [_attention(layer, arrays, is_last), _norm(layer.norm1, arrays)]
        elif not isinstance(layer, MLPLayer):
            if number > 0 or not first_is_linear(fusion):
                matrix, offset = single_token_attention(layer)
                steps.append({"do": "residual", "steps": [_linear(matrix, arrays, offset)]})
            steps.append(_norm(layer.norm1, arrays))
        inner = [
            _linear(layer.linear1.weight, arrays, layer.linear1.bias),
            {"do": "gelu"},
            _linear(layer.linear2.weight, arrays, layer.linear2.bias),
        ]
        norm = layer.norm if isinstance(layer, MLPLayer) else layer.norm2
        steps += [{"do": "residual", "steps": inner}, _norm(norm, arrays)]
    if fusion.first_own == len(layers):
        steps += _members(fusion.members, arrays)
    return steps


def _members(members: MemberScaling | None, arrays: ArrayWriter) -> list[Step]:
    return [] if members is None else [{"do": "members", "factors": arrays.numbers(members.weight)}]


def _attention(layer: ModalityFusionLayer, arrays: ArrayWriter, first_alone: bool) -> Step:
    return {
        "do": "attention",
        "heads": layer.num_heads,
        "first_alone": first_alone,
        "query": _linear(layer.query.weight, arrays, layer.query.bias),
        "key": _linear(layer.key.weight, arrays),
        "value": _linear(layer.value.weight, arrays, layer.value.bias),
        "output": _linear(layer.output.weight, arrays, layer.output.bias),
    }


def _linear(weight: Tensor, arrays: ArrayWriter, bias: Tensor | None = None) -> Step:
    found: Step = {"do": "linear", "weight": arrays.weights(weight)}
    return found if bias is None else found | {"bias": arrays.numbers(bias)}


def _norm(norm: nn.LayerNorm, arrays: ArrayWriter) -> Step:
    weight, bias = arrays.numbers(norm.weight), arrays.numbers(norm.bias)
    return {"do": "norm", "weight": weight, "bias": bias, "eps": norm.eps}
