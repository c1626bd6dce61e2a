"""Probabilities of classes at a temperature, and the sets of classes that they make.

A temperature T divides the logarithms of all classes' chances (Guo et al. 2017, On calibration of
modern neural networks): above 1 it takes confidence away. Ranks and the likeliest class stay.

Axes: B rows, K classes; a binary target has one column, the chance of the positive.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def tempered(chances: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """Return chances at a temperature; differentiable, and as they were at 1."""
    if temperature == 1:
        return chances
    if chances.shape[1] > 1:
        return (chances.clamp_min(torch.finfo(chances.dtype).tiny).log() / temperature).softmax(1)
    return (_inner(chances).logit() / temperature).sigmoid()


def _inner(chances: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Return chances of which a logit is finite."""
    kind = torch.finfo(chances.dtype)
    return chances.clamp(kind.tiny, 1 - kind.eps / 2)  # near 1 there are fewer numbers


def all_classes(chances: Float[Tensor, "B _"]) -> Float[Tensor, "B K"]:
    """Return the chance of every class, also where one column stands for two classes."""
    return torch.cat([1 - chances, chances], dim=1) if chances.shape[1] == 1 else chances


def classes_inside(
    chances: Float[Tensor, "B _"], score: Float[Tensor, " B"]
) -> Bool[Tensor, "B K"]:
    """Return which classes have a score, 1 - chance, of at most the given one; the likeliest has.

    (Sadinle, Lei, Wasserman 2019, least ambiguous sets.)
    """
    every = all_classes(chances)
    inside = 1 - every <= score.unsqueeze(1) + 1e-6  # a chance of a batch is rounded otherwise
    return inside | (every == every.amax(1, keepdim=True))
