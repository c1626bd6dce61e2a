"""The steps of `network` evaluated in Python, as the page's script does: what its bytes compute.

Axes: B rows, k members, M tokens of a row, C string columns, F features, G category columns, D
width, O outputs of one member.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fusionnet.inpage.arrays import ArrayReader


def outputs_of_rows(
    network: Mapping[str, Any],
    read: ArrayReader,
    string_id: Int[Tensor, "B C"],
    numeric: Float[Tensor, "B F"],
    category: Int[Tensor, "B G"],
) -> Float[Tensor, "B kO"]:
    """Return the heads' outputs of standardised rows in float64; ids index the header's tables."""
    num_strings = len(network["string_columns"])
    columns = [string_id[:, column] for column in network["string_columns"]]
    tables = zip(network["tables"], [*columns, *category.unbind(1)], strict=True)
    gathered = [read(table)[column] for table, column in tables]
    parts = _embedded(network["embedding"], read, numeric.double())
    numbers = [
        _through(group["steps"], read, parts[:, group["features"]].flatten(1))
        for group in network["groups"]
    ]
    if network["modality"] is None:
        bias = 0.0 if network["bias"] is None else read(network["bias"])
        x = sum([*gathered, *numbers], start=torch.zeros(len(numeric), 1)) + bias
    else:
        kinds = map(read, network["modality"]["kinds"])
        numbers = [number + kind for number, kind in zip(numbers, kinds, strict=True)]
        cls = read(network["modality"]["cls"]).expand(len(numeric), -1)
        x = torch.stack([cls, *gathered[:num_strings], *numbers, *gathered[num_strings:]], dim=1)
    x = _through(network["steps"], read, x).reshape(-1, network["width"])
    fused = x.unflatten(0, (len(network["heads"]), len(numeric)))
    outputs = [
        _through(head, read, rows)
        for rows, heads in zip(fused, network["heads"], strict=True)
        for head in heads
    ]
    found = torch.cat(outputs, dim=1)
    if network["skip"] is None:
        return found
    return found + (numeric.double() @ read(network["skip"]).T).repeat(1, len(fused))


def _embedded(
    embedding: Mapping[str, Any] | None, read: ArrayReader, numeric: Float[Tensor, "B F"]
) -> Float[Tensor, "B F _"]:
    x = numeric.unsqueeze(2)
    if embedding is None:
        return x
    weight, bias = read(embedding["weight"]), read(embedding["bias"])
    if embedding["kind"] == "ple":
        lower, slope = read(embedding["lower"]), read(embedding["slope"])
        bins = ((x - lower) * slope).clamp(0, 1)
        own = torch.einsum("bfi,fiw->bfw", bins, weight)
        return own + x * read(embedding["linear"]) + bias
    phase = 2 * math.pi * read(embedding["frequencies"]) * x
    functions = torch.cat([phase.cos(), phase.sin()], dim=2)
    weight = weight.expand(numeric.shape[1], -1, -1)
    return F.relu(torch.einsum("bfi,fiw->bfw", functions, weight) + bias)


def _through(steps: Sequence[Mapping[str, Any]], read: ArrayReader, x: Tensor) -> Tensor:
    """Return what the steps make of [..., D]; tokens are the axis before."""
    for step in steps:
        match step["do"]:
            case "linear":
                x = _linear(step, read, x)
            case "norm":
                weight, bias = read(step["weight"]), read(step["bias"])
                x = F.layer_norm(x, weight.shape, weight, bias, step["eps"])
            case "relu":
                x = F.relu(x)
            case "gelu":
                x = F.gelu(x)
            case "residual":
                x = x + _through(step["steps"], read, x)
            case "members":
                factors = read(step["factors"])
                shape = (len(factors), *(1,) * (x.dim() - 1), factors.shape[1])
                x = (x.unsqueeze(0) * factors.view(shape)).flatten(0, 1)
            case "attention":
                x = _attention(step, read, x)
    return x


def _linear(step: Mapping[str, Any], read: ArrayReader, x: Tensor) -> Tensor:
    return F.linear(x, read(step["weight"]), read(step["bias"]) if "bias" in step else None)


def _attention(
    step: Mapping[str, Any], read: ArrayReader, x: Float[Tensor, "B M D"]
) -> Float[Tensor, "B Q D"]:
    """Return the tokens that go on, after attending to all M."""
    asking = x[:, :1] if step["first_alone"] else x
    query, key, value = (
        rearrange(_linear(step[name], read, tokens), "b m (h d) -> b h m d", h=step["heads"])
        for name, tokens in (("query", asking), ("key", x), ("value", x))
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    return asking + _linear(step["output"], read, rearrange(attended, "b h m d -> b m (h d)"))
