"""Which designs are looked at: the same points between bounds for every material and choice.

A cell is a material with one column of each set of choices. All cells have the same points, so that
they are compared on equal terms: those of a scrambled Sobol sequence (Owen 1998), which leave
smaller gaps than random ones, or all combinations of some levels. Nothing is held but a block.

Axes: B designs of a block, M materials, C combinations of choices, V variables, G choices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from embedcache.errors import DesignError
from fusionnet.design.space import Designs, FormulationSpace

MOST_CANDIDATES = 10**12


class Block(NamedTuple):
    """B designs, with where they are in the stream and between their bounds."""

    number: Int64[np.ndarray, " B"]  # in the stream
    cell: Int64[np.ndarray, " B"]
    share: Float64[np.ndarray, "B V"]


class Pool(NamedTuple):
    """N candidates with their rewards."""

    number: Int64[np.ndarray, " N"]
    cell: Int64[np.ndarray, " N"]
    share: Float64[np.ndarray, "N V"]
    reward: Float64[np.ndarray, " N"]

    def take(self, rows: Int64[np.ndarray, " _"]) -> "Pool":
        """Return the candidates at these places."""
        return Pool(*(column[rows] for column in self))


def empty_pool(num_variables: int) -> Pool:
    """Return a pool of no candidates."""
    nothing = np.zeros(0, dtype=np.int64)
    return Pool(nothing, nothing, np.zeros((0, num_variables)), np.zeros(0))


def joined_pools(pools: Sequence[Pool]) -> Pool:
    """Return the candidates of all pools, one after the other."""
    return Pool(*(np.concatenate(columns) for columns in zip(*pools, strict=True)))


@dataclass(frozen=True)
class Candidates:
    """A stream of designs, a function of space, seed and number alone."""

    space: FormulationSpace
    num_points: int  # per cell
    seed: int
    levels: tuple[int, ...] | None = None  # of each variable in a grid; None: a Sobol sequence

    @property
    def num_cells(self) -> int:
        """M times C."""
        return self.space.num_materials * len(self._combinations)

    @property
    def num_rows(self) -> int:
        """All designs."""
        if self.levels is None:
            return self.num_points * self.num_cells
        own = np.where(self._has_room, np.array(self.levels, dtype=object), 1).prod(1)
        return int(own.sum()) * len(self._combinations)

    def designs(self, cell: Int64[np.ndarray, " B"], share: Float64[np.ndarray, "B V"]) -> Designs:
        """Return the designs of cells at shares of the way between their bounds."""
        material, combination = np.divmod(cell, len(self._combinations))
        values = self.space.values_at(material, share)
        return Designs(material, values, self._combinations[combination])

    def blocks(self, most_rows: int) -> Iterator[Block]:
        """Yield all designs, point after point, at most so many at a time."""
        cells = np.arange(self.num_cells)
        per_block = max(1, most_rows // len(cells))
        engine = self._sequence()
        for start in range(0, self.num_points, per_block):
            point = np.arange(start, min(start + per_block, self.num_points))
            share = self._shares(engine, point)
            for first in range(0, len(cells), most_rows):
                own = cells[first : first + most_rows]
                number = point[:, None] * len(cells) + own
                rows = np.repeat(share, len(own), axis=0)
                yield self._distinct(Block(number.reshape(-1), np.tile(own, len(point)), rows))

    def _distinct(self, block: Block) -> Block:
        """Return a block of a grid without levels of what a material holds at one value."""
        if self.levels is None:
            return block
        has_room = self._has_room[block.cell // len(self._combinations)]
        kept = ((block.share == 0) | has_room).all(1)
        return Block(*(column[kept] for column in block))

    def _sequence(self) -> torch.quasirandom.SobolEngine | None:
        num_variables = len(self.space.variables)
        if self.levels is not None or not num_variables:
            return None
        return torch.quasirandom.SobolEngine(num_variables, scramble=True, seed=self.seed)

    def _shares(
        self, engine: torch.quasirandom.SobolEngine | None, point: Int64[np.ndarray, " P"]
    ) -> Float64[np.ndarray, "P V"]:
        """Return the next points of the sequence, or those of the grid."""
        if engine is not None:
            drawn: Float64[np.ndarray, "P V"] = engine.draw(len(point), dtype=torch.float64).numpy()
            return drawn
        levels = self.levels or ()
        share = np.zeros((len(point), len(levels)))
        for v, num_levels in enumerate(levels):
            point, level = np.divmod(point, num_levels)
            share[:, v] = level / max(1, num_levels - 1)
        return share

    @cached_property
    def _has_room(self) -> Bool[np.ndarray, "M V"]:
        return np.asarray(self.space.high > self.space.low)

    @cached_property
    def _combinations(self) -> Int64[np.ndarray, "C G"]:
        sizes = [len(columns) for columns in self.space.choices]
        every = np.array(list(product(*map(range, sizes))), dtype=np.int64)
        return every.reshape(prod(sizes), len(sizes))  # of no choices there is one combination


def sequence(space: FormulationSpace, num_candidates: int, seed: int) -> Candidates:
    """Return at least so many candidates, as many for each material and choice.

    Raises DesignError for a number that is too small or too large.
    """
    one = Candidates(space, 1, seed)
    if not one.num_cells <= num_candidates <= MOST_CANDIDATES:
        raise DesignError(
            f"--candidates must be from {one.num_cells:,}, one for each of"
            f" {space.num_materials:,} materials times {one.num_cells // space.num_materials:,}"
            f" choices, to {MOST_CANDIDATES:,}; got {num_candidates:,}"
        )
    num_points = -(-num_candidates // one.num_cells) if space.variables else 1
    return Candidates(space, num_points, seed)


def grid(space: FormulationSpace, num_levels: int) -> Candidates:
    """Return all combinations of so many levels of each variable, bounds included.

    A variable that every material holds at one value has one level.
    """
    if num_levels < 2:
        raise DesignError(f"--grid must be 2 levels or more; got {num_levels}")
    has_room = np.array((space.high > space.low).any(0))
    levels = tuple(num_levels if room else 1 for room in has_room.tolist())
    num_points = int(np.prod(levels, dtype=object)) if levels else 1
    found = Candidates(space, num_points, 0, levels)
    if found.num_rows > MOST_CANDIDATES:
        raise DesignError(
            f"--grid {num_levels} is {found.num_rows:,} designs; give fewer levels, or --candidates"
        )
    return found
