"""Integrated gradients (Sundararajan, Taly and Yan 2017): what each token adds to a prediction.

The embeddings of a string's tokens move in a straight line from a baseline to their own; a token's
share is the integral of the slopes on the way, times how far it moved. Shares add up to the
difference of the predictions at both ends (completeness), and on each part of the way to what the
prediction changes there: so it is known which part is summed too coarsely, and that one is halved.
A norm may make the way steep in one place; 256 points evenly over rxnmapper's left gaps of 11 %.

Axes: K points, L tokens, W the width of their embeddings, T values that are explained.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

PART_POINTS = 8  # of Gauss and Legendre, in each part of the way
FEWEST_PARTS, MOST_PARTS = 2, 32
GOOD_GAP, MOST_GAP = 0.01, 0.05  # shares of the difference
_ROUNDING = 1e-6  # of the predictions themselves, in fp32
_NOTHING = 1e-300

Values = Callable[[Float[Tensor, "K L W"]], Float[Tensor, "K T"]]


class Integrated(NamedTuple):
    """The shares of tokens, and what they should add up to."""

    shares: Float64[Tensor, "L T"]
    at_start: Float64[Tensor, " T"]
    at_end: Float64[Tensor, " T"]
    gap: Float64[Tensor, " T"]  # what the parts of the way miss, as a share of the difference
    num_points: int

    @property
    def is_complete(self) -> list[bool]:
        """Whether the shares of each value add up."""
        return (self.gap <= MOST_GAP).tolist()


class _Part(NamedTuple):
    """A part of the way, from one share of it to another."""

    start: float
    end: float
    value_at_end: Float64[Tensor, " T"]
    shares: Float64[Tensor, "L T"]
    missed: Float64[Tensor, " T"]  # by the sum of the shares, without sign


def integrated_gradients(
    values: Values,
    start: Float[Tensor, "L W"],
    end: Float[Tensor, "L W"],
    points_at_once: int = PART_POINTS,
    most_parts: int = MOST_PARTS,
) -> Integrated:
    """Return the shares of tokens in each of the values, a function of the embeddings.

    `values` must treat points apart. Parts are halved until all gaps are at most `GOOD_GAP`, or
    there are `most_parts`.
    """
    way = _Way(values, start, end, points_at_once)
    at_start, at_end = way.value(0.0), way.value(1.0)
    edges = np.linspace(0, 1, FEWEST_PARTS + 1).tolist()
    parts: list[_Part] = []
    before = at_start
    for first, last in pairwise(edges):
        parts.append(way.part(first, last, before))
        before = parts[-1].value_at_end
    num_parts = len(parts)  # that were computed, those that were halved too
    while True:
        missed = torch.stack([part.missed for part in parts])  # [parts, T]
        gap = _gap(missed, at_start, at_end)
        if bool((gap <= GOOD_GAP).all()) or len(parts) >= most_parts:
            shares = torch.stack([part.shares for part in parts]).sum(0)
            return Integrated(shares, at_start, at_end, gap, num_parts * PART_POINTS)
        worst = int(torch.where(gap > GOOD_GAP, missed / missed.sum(0), 0.0).amax(1).argmax())
        before = parts[worst - 1].value_at_end if worst else at_start
        middle = (parts[worst].start + parts[worst].end) / 2
        first_half = way.part(parts[worst].start, middle, before)
        second_half = way.part(middle, parts[worst].end, first_half.value_at_end)
        parts[worst : worst + 1] = [first_half, second_half]
        num_parts += 2


class _Way:
    """The straight way between two sets of embeddings, and the values along it."""

    def __init__(
        self,
        values: Values,
        start: Float[Tensor, "L W"],
        end: Float[Tensor, "L W"],
        points_at_once: int,
    ) -> None:
        self._values, self._start, self._way = values, start, end - start
        self._points_at_once = points_at_once

    @torch.no_grad()
    def value(self, place: float) -> Float64[Tensor, " T"]:
        """Return the values at a share of the way."""
        return self._values((self._start + place * self._way).unsqueeze(0))[0].double()

    def part(self, first: float, last: float, before: Float64[Tensor, " T"]) -> _Part:
        """Return a part of the way, at whose beginning the values are those `before` it."""
        nodes, weights = np.polynomial.legendre.leggauss(PART_POINTS)  # on [-1, 1]
        places = first + (last - first) * (nodes + 1) / 2
        shares = sum(
            self._slopes(places[some], weights[some] * (last - first) / 2)
            for some in (
                slice(point, point + self._points_at_once)
                for point in range(0, PART_POINTS, self._points_at_once)
            )
        )
        assert isinstance(shares, Tensor)
        after = self.value(last)
        missed = (shares.sum(0) - (after - before)).abs()
        # fp32 rounds the values themselves
        rounding = _ROUNDING * torch.maximum(before.abs(), after.abs())
        return _Part(first, last, after, shares, torch.where(missed <= rounding, 0.0, missed))

    def _slopes(
        self, places: Float[np.ndarray, " K"], weights: Float[np.ndarray, " K"]
    ) -> Float64[Tensor, "L T"]:
        """Return the weighted sum of slopes at some places, times how far each token moves."""
        place = torch.from_numpy(places).to(self._way)[:, None, None]
        weight = torch.from_numpy(weights).to(self._way)[:, None]
        points = (self._start + place * self._way).requires_grad_()  # [K, L, W]
        with torch.enable_grad():
            found = self._values(points).sum(0)
        columns = []
        for number, value in enumerate(found):
            is_last = number + 1 == len(found)
            (slope,) = torch.autograd.grad(value, points, retain_graph=not is_last)
            columns.append(((slope * self._way).sum(2) * weight).double().sum(0))
        return torch.stack(columns, dim=1)


def _gap(
    missed: Float64[Tensor, "_parts T"], start: Float64[Tensor, " T"], end: Float64[Tensor, " T"]
) -> Float64[Tensor, " T"]:
    """Return what all parts miss, as a share of the difference."""
    return missed.sum(0) / (end - start).abs().clamp_min(_NOTHING)
