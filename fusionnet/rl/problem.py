"""What a policy is asked: of patients, designs and their rewards, without any framework.

An episode is one design for one patient: nothing that a policy does changes what comes next (a
contextual bandit). Patients' features are the observation, standardised as the network reads them.

Axes: P patients, B designs, O observed numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32, Int64

from embedcache.errors import DesignError
from embedcache.text import nearest
from fusionnet.config.reward import Unseen
from fusionnet.design.columns import Context
from fusionnet.design.deriving import from_rows, patients, read_rows
from fusionnet.design.space import Designs, FormulationSpace
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewarder import Rewarder
from fusionnet.trained.rewards import Rewards


@dataclass(frozen=True, eq=False)
class DesignProblem:
    """Patients, what may be chosen for each, and what it is worth."""

    space: FormulationSpace
    rewarder: Rewarder
    frame: pl.DataFrame  # a row per patient, as a table has it
    names: tuple[str, ...]  # of the P patients
    contexts: Context
    observations: Float32[np.ndarray, "P O"]

    @property
    def num_patients(self) -> int:
        """P."""
        return len(self.names)

    def index_of(self, name: str) -> int:
        """Return the number of a patient; raises DesignError for one that is not there."""
        if name not in self.names:
            raise DesignError(f"there is no patient '{name:.80}'{nearest(name[:80], self.names)}")
        return self.names.index(name)

    def inputs(self, patient: Int64[np.ndarray, " B"], designs: Designs) -> RowInputs:
        """Return designs for patients as rows in raw units."""
        return self.space.inputs(self.contexts.take(patient), *designs)

    def rewards(self, patient: Int64[np.ndarray, " B"], designs: Designs) -> Rewards:
        """Return what designs for patients are worth; that they are of the space is not checked."""
        return self.rewarder(self.inputs(patient, designs))

    def rows(self, patient: Int64[np.ndarray, " B"], designs: Designs) -> pl.DataFrame:
        """Return designs for patients as a table that `RewardModel.predict` reads.

        Raises DesignError for a design outside of the space.
        """
        return self.space.frame(self.frame[patient], *designs)


def design_problem(
    model: RewardModel,
    table: Any = None,
    only: Sequence[str] | None = None,
    pessimism: float | None = None,
    unseen: Unseen | None = None,
) -> DesignProblem:
    """Return the problem of a run's patients, or of `only` some of them.

    `table` (a frame or a path; unset: the run's own) has the patients, and its rows bound what may
    be chosen. Pessimism and what is done with unseen strings are as for `RewardModel.rewards`.
    Raises DesignError, and what reading the table and the reward do.
    """
    rows = read_rows(model.run, table)
    space = from_rows(model.run, rows)
    frame = patients(space, rows)
    names = _names(space, frame)
    if only is not None:
        absent = [name for name in only if name not in names]
        if absent or not only:
            raise DesignError(
                f"patients must be among those of the table: {', '.join(names):.400}; got"
                f" {', '.join(absent) or 'none'}"
            )
        frame = frame[[names.index(name) for name in only]]
        names = tuple(only)
    contexts = space.context(frame)
    rewarder = model.on_strings(space.distinct, pessimism, unseen)
    seen = _observations(model, space, contexts)
    return DesignProblem(space, rewarder, frame, names, contexts, seen)


def _names(space: FormulationSpace, frame: pl.DataFrame) -> tuple[str, ...]:
    """Return what patients are called: their group, or the number of their row."""
    if space.group is None:
        return tuple(str(number) for number in range(frame.height))
    return tuple(frame[space.group].cast(pl.String).to_list())


def _observations(
    model: RewardModel, space: FormulationSpace, contexts: Context
) -> Float32[np.ndarray, "P O"]:
    """Return patients' features: numbers standardised, then categories one-hot.

    Where patients have none they are all the same, a single 0.
    """
    count = len(contexts.numeric)
    design = Designs(
        np.zeros(count, dtype=np.int64),
        np.repeat(space.low[:1], count, axis=0),
        np.zeros((count, len(space.choices)), dtype=np.int64),
    )
    inputs = space.inputs(contexts, *design)
    standard = model.run.scaling.apply(inputs.numeric)
    chosen = {*space.variables, *(name for names in space.choices for name in names)}
    columns = space.columns
    given = [
        f
        for f, name in enumerate(columns.features)
        if columns.indicators.get(name, name) not in chosen
    ]
    parts = [standard[:, given]]
    for k, (name, values) in enumerate(columns.vocabularies.items()):
        if name not in space.categories:
            parts.append(torch.nn.functional.one_hot(inputs.category[:, k], len(values)))
    observed = torch.cat([part.float() for part in parts], dim=1).numpy()
    return observed if observed.shape[1] else np.zeros((count, 1), dtype=np.float32)
