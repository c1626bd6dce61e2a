"""Embeddings of numeric features: each feature becomes several, of which a network makes more.

A network of layers learns a jump or a wiggle along one number slowly; trees split it at once
(Gorishniy, Rubachev, Babenko 2022, On embeddings for numerical features in tabular deep learning).
Two of their forms, written anew: the authors' package (rtdl_num_embeddings) extends the outermost
bins without bound, and its modules do not compute in fp16. The tests hold ours to it.

Piecewise linear: a feature's bins hold equal shares of the train rows; each bin's number goes from
0 at its lower edge to 1 at its upper one. A matrix per feature takes them to the embedding, zero at
first, beside a linear function of the feature itself ("version B" of the authors). Beyond the train
rows the bins stay at 0 and 1, and the linear function goes on.

Periodic: sines and cosines of learnt frequencies, a matrix and ReLU; the features themselves do not
enter. Beyond the train rows they oscillate, as Fourier features do.

Axes: B rows, F numeric features, K the most bins of a feature, P periodic functions of a feature, I
what an embedding is made of, W the width of one feature's embedding.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionnet.config.model import ModelConfig

_MOST_SLOPE = 1e30  # fp32 ends at 3e38, and 0 times infinity is NaN


class PiecewiseLinear(nn.Module):
    """F -> F x W, linear between the edges of each feature's bins."""

    lower: Tensor  # [F, K]
    slope: Tensor  # [F, K]: 1 / width; 0 for a bin that the feature does not have

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        """`edges` are each feature's, ascending and distinct, at least two."""
        super().__init__()
        most = max(map(len, edges)) - 1
        lower, slope = torch.zeros(len(edges), most), torch.zeros(len(edges), most)
        for feature, each in enumerate(edges):
            # on the CPU: see `drawn`
            exact = torch.tensor(each, dtype=torch.float64, device="cpu")
            lower[feature, : len(each) - 1] = exact[:-1].float()
            slope[feature, : len(each) - 1] = (1 / exact.diff()).clamp_max(_MOST_SLOPE).float()
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("slope", slope, persistent=False)
        self.linear = nn.Parameter(_uniform(width, len(edges), width))
        self.bias = nn.Parameter(_uniform(width, len(edges), width))
        self.weight = nn.Parameter(torch.zeros(len(edges), most, width))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B F W"]:
        """Return the embedding of each feature."""
        x = features.unsqueeze(2)
        bins = ((x - self.lower) * self.slope).clamp(0, 1)  # [B, F, K]
        return _per_feature(bins, self.weight) + (x * self.linear + self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PiecewiseLinear":
        # in fp16 bins would merge, and slopes overflow
        lower, slope = self.lower, self.slope
        super()._apply(fn, recurse)
        self.lower, self.slope = (each.to(self.lower.device) for each in (lower, slope))
        return self


class Periodic(nn.Module):
    """F -> F x W by P sines and cosines of learnt frequencies, a matrix and ReLU."""

    def __init__(
        self, num_features: int, width: int, num_frequencies: int, sigma: float, lite: bool
    ) -> None:
        """`sigma` is the spread of the first frequencies, in periods per spread of a feature.

        `lite`: all features have one matrix in common.
        """
        super().__init__()
        frequencies = torch.empty(num_features, num_frequencies)
        nn.init.trunc_normal_(frequencies, 0.0, sigma, -3 * sigma, 3 * sigma)
        self.frequencies = nn.Parameter(frequencies)
        num_functions, matrices = 2 * num_frequencies, 1 if lite else num_features
        self.weight = nn.Parameter(_uniform(num_functions, matrices, num_functions, width))
        self.bias = nn.Parameter(_uniform(num_functions, matrices, width))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B F W"]:
        """Return the embedding of each feature."""
        phase = 2 * math.pi * self.frequencies.to(features.dtype) * features.unsqueeze(2)
        functions = torch.cat([phase.cos(), phase.sin()], dim=2)  # [B, F, P]
        if len(self.weight) == 1:
            functions = functions.to(self.weight.dtype)
            return F.relu(functions @ self.weight[0] + self.bias[0])
        return F.relu(_per_feature(functions, self.weight) + self.bias)


def numeric_embedding(
    config: ModelConfig, num_features: int, edges: Sequence[Sequence[float]]
) -> PiecewiseLinear | Periodic | None:
    """Return what the config says makes several features of each one, None where nothing does.

    `edges` are those of the features' bins, for `ple` alone.
    """
    sizes = config.numeric_embedding
    if config.numeric == "linear" or not num_features:
        return None
    if config.numeric == "ple":
        assert len(edges) == num_features, "they are the train rows'"
        return PiecewiseLinear(edges, sizes.width)
    return Periodic(num_features, sizes.width, sizes.frequencies, sizes.sigma, sizes.lite)


def _per_feature(
    x: Float[Tensor, "B F I"], weight: Float[Tensor, "F I W"]
) -> Float[Tensor, "B F W"]:
    """Return each feature's product with its own matrix."""
    return torch.bmm(x.transpose(0, 1).to(weight.dtype), weight).transpose(0, 1)


def _uniform(fan_in: int, *shape: int) -> Tensor:
    """Return weights drawn as `nn.Linear` draws those of so many inputs."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
