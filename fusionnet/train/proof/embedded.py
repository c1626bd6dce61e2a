"""Embeddings of numeric features as their equations stand, feature by feature, for the certificate.

Axes: B rows, F numeric features.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from embedcache.scaling import Scaling
from fusionnet.config.model import ModelConfig

Getter = Callable[[str], Tensor]  # of the network's weights
Activation = Callable[[Tensor], Tensor]


def embedded_features(
    config: ModelConfig,
    scaling: Scaling,
    of: Getter,
    numeric: Float[Tensor, "B F"],
    relu: Activation,
) -> Float[Tensor, "B F _"]:
    """Return what each feature is embedded as: itself, where it is not."""
    sizes, columns = config.numeric_embedding, []
    edges = scaling.bin_edges(sizes.bins) if config.numeric == "ple" else []
    for number, x in enumerate(numeric.unbind(1)):
        if config.numeric == "linear":
            columns.append(x.unsqueeze(1))
        elif config.numeric == "ple":
            pairs = zip(edges[number][:-1], edges[number][1:], strict=True)
            bins = [((x - low) / (high - low)).clamp(0, 1) for low, high in pairs]
            weight = of("numeric_embedding.weight")[number, : len(bins)]
            line = x.unsqueeze(1) * of("numeric_embedding.linear")[number]
            line = line + of("numeric_embedding.bias")[number]
            columns.append(line + F.linear(torch.stack(bins, dim=1), weight.T))
        else:
            waves = 2 * torch.pi * x.unsqueeze(1) * of("numeric_embedding.frequencies")[number]
            shared = 0 if sizes.lite else number
            weight, bias = (of(f"numeric_embedding.{each}")[shared] for each in ("weight", "bias"))
            functions = torch.cat([waves.cos(), waves.sin()], dim=1)
            columns.append(relu(F.linear(functions, weight.T, bias)))
    return torch.stack(columns, dim=1) if columns else numeric.unsqueeze(2)
