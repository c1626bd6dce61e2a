"""The search: every candidate is rewarded, and what may matter of it is kept.

Strings are encoded and projected once (`RewardModel.on_strings`), so that a candidate is a gather
and the network's products. With precision bf16 these are rounded to about three digits: then what
is kept is rewarded again in fp32, and judged by that.

Axes: B rows of a block, N of what is kept, O objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from tqdm import tqdm

from fusionnet.design.candidates import Candidates, Pool
from fusionnet.design.columns import Context
from fusionnet.design.diverse import RunningTop, diverse
from fusionnet.design.objectives import Objective, formula_of_objectives
from fusionnet.design.pareto import RunningFront, non_dominated
from fusionnet.trained.rewarder import Rewarder

BLOCK_ROWS = 32_768
POOL_ROWS = 16_384  # kept for the top, shared among cells
LEAST_PER_CELL = 16
MOST_DRAWN = 4_096  # candidates of all kinds that a picture shows


class Judged(NamedTuple):
    """Rewards of rows, and their objectives, of which more is better."""

    reward: Float64[np.ndarray, " B"]
    objectives: Float64[np.ndarray, "B O"]

    def take(self, rows: Int64[np.ndarray, " _"]) -> "Judged":
        """Return what is known of these rows."""
        return Judged(self.reward[rows], self.objectives[rows])


@dataclass(frozen=True)
class Judge:
    """A run that rewards one patient's designs."""

    candidates: Candidates
    context: Context
    objectives: Sequence[Objective]
    rewarder: Rewarder

    def __call__(self, cell: Int64[np.ndarray, " B"], share: Float64[np.ndarray, "B V"]) -> Judged:
        """Return what the run says of designs."""
        space, rewarder = self.candidates.space, self.rewarder
        inputs = space.inputs(self.context, *self.candidates.designs(cell, share))
        inputs = inputs.to(rewarder.run.device)
        found, predictions = rewarder.predicted(inputs)
        rewards = rewarder.rewards(inputs, found, predictions)
        formula = formula_of_objectives(rewarder.run, self.objectives)
        signed = formula.parts(predictions).terms
        return Judged(*(each.double().cpu().numpy() for each in (rewards.total, signed)))


@dataclass(frozen=True)
class Found:
    """What a search has found, as it was judged last."""

    top: Pool
    is_exact: bool  # see `Diverse`
    front: Pool
    front_objectives: Float64[np.ndarray, "N O"]
    some: Judged  # of all kinds of candidates, for a picture
    num_rows: int


def search(
    fast: Judge, exact: Judge | None, distance: float, count: int, progress: bool = False
) -> Found:
    """Return the most rewarded candidates that differ, and the Pareto front, of a stream.

    `exact`, where given, judges again what the fast judge kept.
    """
    candidates = fast.candidates
    per_cell = max(LEAST_PER_CELL, POOL_ROWS // candidates.num_cells)
    num_variables = len(candidates.space.variables)
    top = RunningTop(candidates.num_cells, per_cell, num_variables)
    front = RunningFront(len(fast.objectives), num_variables)
    some: list[Judged] = []
    stride = max(1, candidates.num_rows // MOST_DRAWN)
    while gcd(stride, candidates.num_cells) > 1:  # or some cells would never be drawn
        stride += 1
    total = candidates.num_rows
    with tqdm(total=total, unit="designs", unit_scale=True, disable=not progress) as bar:
        for block in candidates.blocks(BLOCK_ROWS):
            judged = fast(block.cell, block.share)
            pool = Pool(*block, judged.reward)
            top.add(pool)
            front.add(judged.objectives, pool)
            some.append(judged.take(np.flatnonzero(block.number % stride == 0)))
            bar.update(len(block.number))
    top.settle()
    front.settle()
    best, of_front, values = top.pool, front.pool, front.values
    if exact is not None:
        best, _ = _judged_again(exact, best)
        of_front, values = _judged_again(exact, of_front)
        kept = np.flatnonzero(non_dominated(values))
        of_front, values = of_front.take(kept), values[kept]
    designs = candidates.designs(best.cell, best.share)
    place = candidates.space.shares_of(designs.material, designs.values)
    chosen = diverse(best, place, top.left_out, distance, count)
    drawn = Judged(*(np.concatenate(columns) for columns in zip(*some, strict=True)))
    order = np.lexsort((of_front.number, -of_front.reward))
    return Found(
        top=best.take(chosen.rows),
        is_exact=chosen.is_exact,
        front=of_front.take(order),
        front_objectives=values[order],
        some=drawn,
        num_rows=total,
    )


def _judged_again(judge: Judge, pool: Pool) -> tuple[Pool, Float64[np.ndarray, "N O"]]:
    """Return candidates with the rewards of another judge, and their objectives."""
    parts = [
        judge(pool.cell[start : start + BLOCK_ROWS], pool.share[start : start + BLOCK_ROWS])
        for start in range(0, len(pool.number), BLOCK_ROWS)
    ]
    judged = Judged(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return pool._replace(reward=judged.reward), judged.objectives
