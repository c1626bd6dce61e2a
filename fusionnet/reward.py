"""The trained model as the reward of a later reinforcement-learning stage (specification, section 10).

    reward = sum of weight x prediction (probability for binary tasks) - penalty where a prediction is on the wrong side of its threshold

Terms and penalties are in the run's config. `reward(frame)` is batched and free of gradients; `differentiable(...)` takes tensors, lets gradients through
to raw numeric features, and can soften the thresholds, whose hard form has no gradient.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.errors import UnobservedTaskError
from fusionnet.frames import FrameInputs, frame_inputs, open_frame
from fusionnet.predict import to_units
from fusionnet.run import Moment, TrainedRun, load_run, vectors_of

BATCH_ROWS = 8192


class RewardModel:
    """A run, frozen, that predicts and rewards rows in raw units."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu", moment: Moment = "best") -> "RewardModel":
        """Return the reward model of a run folder."""
        return cls(load_run(folder, moment, device))

    def predict(self, frame: Any) -> pl.DataFrame:
        """Return predictions in raw units, one column `predicted_<column>` per task; probabilities for binary tasks.

        `frame` is a polars or pandas frame, or a path, with the columns that the run's config names, in their units. Raises TableError with all violations.
        """
        columns = [f"predicted_{task.column}" for task in self.run.tasks]
        return pl.concat([pl.DataFrame(part.cpu().numpy(), schema=columns) for part in self._predictions(frame)])

    def reward(self, frame: Any) -> Float[Tensor, " B"]:
        """Return one reward per row, with hard thresholds, without gradients. Raises UnobservedTaskError if the reward reads an untrained task."""
        self._check_tasks()
        return torch.cat([self.reward_of(part) for part in self._predictions(frame)])

    def score(self, frame: Any) -> pl.DataFrame:
        """Return predictions and the column `reward`, in one pass."""
        self._check_tasks()
        columns = [f"predicted_{task.column}" for task in self.run.tasks]
        parts = [pl.DataFrame(part.cpu().numpy(), schema=columns).with_columns(reward=self.reward_of(part).cpu().numpy()) for part in self._predictions(frame)]
        return pl.concat(parts)

    def differentiable(
        self,
        vectors: list[Float[Tensor, "_ _"]],
        string_id: Int[Tensor, "B C"],
        numeric: Float[Tensor, "B F"],
        category: Int[Tensor, "B K"],
        softness: float | None = None,
    ) -> Float[Tensor, " B"]:
        """Return rewards with gradients with respect to `vectors` and `numeric` (raw units).

        `softness` is the width, in the task's unit, of a sigmoid that replaces each threshold; None keeps thresholds hard (their gradient is zero).
        """
        self._check_tasks()
        run = self.run
        outputs = run.model.outputs(vectors, string_id, run.scaling.apply(numeric), category)
        return self.reward_of(to_units(outputs, run.tasks, run.scaling), softness)

    def reward_of(self, predictions: Float[Tensor, "B T"], softness: float | None = None) -> Float[Tensor, " B"]:
        """Return the reward of predictions in raw units, in the order of the run's tasks."""
        config = self.run.reward
        total = predictions.new_zeros(len(predictions))
        for term in config.terms:
            total = total + term.weight * predictions[:, self._place(term.task)]
        for penalty in config.penalties:
            value = predictions[:, self._place(penalty.task)]
            beyond = value - penalty.above if penalty.above is not None else penalty.below - value
            total = total - penalty.penalty * ((beyond > 0).to(value) if softness is None else torch.sigmoid(beyond / softness))
        return total

    def _place(self, task: str) -> int:
        """Return a task's column among the outputs; raises UnobservedTaskError if it was not trained."""
        names = [trained.name for trained in self.run.tasks]
        if task not in names:
            raise UnobservedTaskError(
                f"task '{task}' was not trained in {self.run.folder}: its table had no labels for it, and its value is not invented; "
                f"trained are {', '.join(names)}. Train on a table with these labels, or take the task out of reward in the run's config"
            )
        return names.index(task)

    def _check_tasks(self) -> None:
        for part in (*self.run.reward.terms, *self.run.reward.penalties):
            self._place(part.task)

    @torch.no_grad()
    def _predictions(self, frame: Any) -> Iterator[Float[Tensor, "B T"]]:
        """Yield predictions batch by batch; memory does not grow with the rows."""
        run = self.run
        table = open_frame(run, frame)
        vectors = [vectors_of(run, column.name, table.strings[column.name].text) for column in run.data.strings]
        for inputs in frame_inputs(run, table, BATCH_ROWS):
            yield to_units(self._outputs(vectors, inputs), run.tasks, run.scaling)

    def _outputs(self, vectors: list[Float[Tensor, "_ _"]], inputs: FrameInputs) -> Float[Tensor, "B T"]:
        device = vectors[0].device
        numeric = self.run.scaling.apply(inputs.numeric.to(device))
        return self.run.model.outputs(vectors, inputs.string_id.to(device), numeric, inputs.category.to(device))
