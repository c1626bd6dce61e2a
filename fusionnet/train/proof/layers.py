"""The network's layers as their equations stand, in functions of torch, for the certificate.

Axes: B rows, M tokens of a row, D fusion width, W the width of one part of the input projection.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fusionnet.train.proof.embedded import Activation, Getter


def linear_map(of: Getter, name: str, x: Float[Tensor, "*B _"]) -> Float[Tensor, "*B _"]:
    """Return a linear layer\'s outputs."""
    return F.linear(x, of(f"{name}.weight"), of(f"{name}.bias"))


def normed(of: Getter, name: str, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Return the outputs of a layer norm."""
    return F.layer_norm(x, x.shape[-1:], of(f"{name}.weight"), of(f"{name}.bias"))


def hidden_layer(
    of: Getter, linear: str, norm: str, x: Float[Tensor, "B _"], activation: Activation
) -> Float[Tensor, "B W"]:
    """Return what a linear layer, a layer norm and an activation make of inputs."""
    return activation(normed(of, norm, linear_map(of, linear, x)))


def tokens_fused(
    of: Getter,
    parts: Sequence[Float[Tensor, "B _"]],
    num_heads: int,
    num_layers: int,
    split: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "B D"]:
    """Return [CLS] after the transformer over a token per part, all tokens through all layers."""
    blocks = of("projection.weight").split([part.shape[1] for part in parts], dim=1)
    tokens = [F.linear(part, block) for part, block in zip(parts, blocks, strict=True)]
    cls = of("fusion.cls").expand(len(tokens[0]), 1, -1)
    x = torch.cat([cls, torch.stack(tokens, dim=1) + of("fusion.kinds")], dim=1)  # [B, M, D]
    for number in range(num_layers):
        x = transformer_layer(of, f"fusion.layers.{number}", num_heads, split(number, x))
    return normed(of, "fusion.norm", split(num_layers, x[:, 0]))


def transformer_layer(
    of: Getter, name: str, num_heads: int, x: Float[Tensor, "B M D"]
) -> Float[Tensor, "B M D"]:
    """Return what torch's own layer makes of the tokens with these weights.

    Over one token queries and keys are without effect, and without weights: zeros stand for them.
    """
    width, inner = x.shape[2], len(of(f"{name}.linear1.bias"))
    with torch.device("meta"):  # its weights are given below
        layer = nn.TransformerEncoderLayer(
            width, num_heads, inner, dropout=0.0, activation=F.gelu, batch_first=True
        )
    value = of(f"{name}.value.weight")
    none = torch.zeros_like(of(f"{name}.value.bias"))
    if x.shape[1] == 1:
        query = key = torch.zeros_like(value)
        query_bias = none
    else:
        query, key = of(f"{name}.query.weight"), of(f"{name}.key.weight")
        query_bias = of(f"{name}.query.bias")
    weights = {
        "self_attn.in_proj_weight": torch.cat([query, key, value]),
        "self_attn.in_proj_bias": torch.cat([query_bias, none, of(f"{name}.value.bias")]),
    }
    names = {"self_attn.out_proj": "output"} | {
        each: each for each in ("linear1", "linear2", "norm1", "norm2")
    }
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            weights[f"{theirs}.{kind}"] = of(f"{name}.{ours}.{kind}")
    return functional_call(layer, weights, (x,), tie_weights=False)


def head_outputs(
    of: Getter, layers: Sequence[str], fused: Float[Tensor, "B D"], relu: Activation
) -> Float[Tensor, "B _"]:
    """Return one head's outputs: its linear layers in order, ReLU between them."""
    for name in layers[:-1]:
        fused = relu(linear_map(of, name, fused))
    return linear_map(of, layers[-1], fused)


def layers_of(weights: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Return the names of a sequence's layers inside the network, in order."""
    numbers = {
        int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix)
    }
    return [f"{prefix.removeprefix('network.')}{number}" for number in sorted(numbers)]
