"""The trained model as predictor, and as the reward of a later reinforcement-learning stage
(specification, section 10).

    reward = sum of weight x prediction (probability for binary tasks)
             - penalty where a prediction is on the wrong side of its threshold

Terms and penalties are in the run's config. `reward(frame)` is batched and free of gradients. To
optimise a design by gradients:

    rows = model.inputs(frame)
    numeric = rows.numeric.requires_grad_()                     # raw units: kPa, mm, ...
    model.differentiable(rows.vectors, rows.string_id, numeric, rows.category).sum().backward()

A threshold has no gradient; there it is a sigmoid of the penalty's `width`, in the unit of its
task.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from embedcache.errors import ConfigError, UnobservedTaskError
from embedcache.table.table import Table
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import to_units
from fusionnet.trained.frames import FrameInputs, frame_inputs, open_frame
from fusionnet.trained.run import Moment, Precision, TrainedRun, load_run
from fusionnet.trained.vectors import vectors_of_all_strings

BATCH_ROWS = 8192


class Inputs(NamedTuple):
    """Rows as `RewardModel.differentiable` takes them: one matrix of vectors per string column,
    numeric features in raw units.
    """

    vectors: list[Float[Tensor, "_ _"]]
    string_id: Int[Tensor, "B C"]
    numeric: Float[Tensor, "B F"]
    category: Int[Tensor, "B K"]


class RewardModel:
    """A run, frozen, that predicts and rewards rows in raw units; memory does not grow with their
    number.
    """

    def __init__(self, run: TrainedRun) -> None:
        self.run = run
        self._evaluate = RowEvaluator(run.model.network, run.model.product_dtype)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        moment: Moment = "best",
        precision: Precision = "fp32",
    ) -> "RewardModel":
        """Return the reward model of a run folder; see `load_run` for `precision`."""
        return cls(load_run(folder, moment, device, precision))

    def predict(self, frame: Any) -> pl.DataFrame:
        """Return predictions in raw units, one column `predicted_<column>` per task; probabilities
        for binary tasks.

        `frame` is a polars or pandas frame, or a path, with the columns that the run's config
        names, in their units. Raises TableError with all violations.
        """
        return pl.concat(self.batches(frame))

    def reward(self, frame: Any) -> Float[Tensor, " B"]:
        """Return one reward per row, with hard thresholds, without gradients. Raises
        UnobservedTaskError if the reward reads an untrained task.
        """
        self.check_reward()
        return torch.cat(
            [self.reward_of(part) for part, _ in self._predictions(open_frame(self.run, frame))]
        )

    def score(self, frame: Any) -> pl.DataFrame:
        """Return predictions and the column `reward`, in one pass."""
        return pl.concat(self.batches(frame, reward=True))

    def batches(
        self,
        frame: Any,
        reward: bool = False,
        keep: pl.LazyFrame | None = None,
        progress: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Yield predictions, and rewards where asked, batch by batch in the frame's order, beside
        the same rows of `keep`.

        The whole frame is checked before the first batch.
        """
        if reward:
            self.check_reward()
        columns = [f"predicted_{task.column}" for task in self.run.tasks]
        table = open_frame(self.run, frame)
        with tqdm(
            total=table.num_rows,
            unit="rows",
            unit_scale=True,
            desc="predict",
            leave=False,
            disable=None if progress else True,
        ) as bar:
            for predictions, kept in self._predictions(table, keep):
                added = pl.DataFrame(predictions.cpu().numpy(), schema=columns)
                added = (
                    added.with_columns(reward=self.reward_of(predictions).cpu().numpy())
                    if reward
                    else added
                )
                yield kept.hstack(added) if keep is not None else added
                bar.update(len(added))

    def inputs(self, frame: Any) -> Inputs:
        """Return all rows of a frame as tensors on the run's device, for `differentiable`."""
        table, device = open_frame(self.run, frame), self.run.device
        parts = [part for part, _ in frame_inputs(self.run, table, BATCH_ROWS)]
        string_id, numeric, category = (
            torch.cat([getattr(part, name) for part in parts]).to(device)
            for name in ("string_id", "numeric", "category")
        )
        return Inputs(self._vectors(table), string_id, numeric, category)

    def differentiable(
        self,
        vectors: Sequence[Float[Tensor, "_ _"]],
        string_id: Int[Tensor, "B C"],
        numeric: Float[Tensor, "B F"],
        category: Int[Tensor, "B K"],
        softness: float | None = None,
    ) -> Float[Tensor, " B"]:
        """Return rewards with gradients with respect to `vectors` and `numeric` (raw units), always
        in fp32: bf16 steps would swamp a slope.

        `softness`, in the tasks' units, stands for the `width` of every penalty. A penalty with
        neither keeps its hard threshold, which has no gradient.
        """
        self.check_reward()
        run = self.run
        with torch.autocast(run.device.type, enabled=False):
            outputs = run.model.network(vectors, string_id, run.scaling.apply(numeric), category)
        widths = [
            softness if softness is not None else penalty.width for penalty in run.reward.penalties
        ]
        return self._total(to_units(outputs, run.tasks, run.scaling), widths)

    def reward_of(self, predictions: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Return the reward of predictions in raw units, in the order of the run's tasks, with hard
        thresholds.
        """
        return self._total(predictions, [None] * len(self.run.reward.penalties))

    def check_reward(self) -> None:
        """Raise ConfigError if the run's config says nothing of a reward, UnobservedTaskError if it
        reads a task that was not trained.
        """
        reward = self.run.reward
        if not reward.terms:
            raise ConfigError(
                f"{self.run.folder / self.run.name}_config.yaml has no reward.terms, so there is no"
                " reward; see configs/stage1.yaml for an example"
            )
        for part in (*reward.terms, *reward.penalties):
            self._place(part.task)

    def _total(
        self, predictions: Float[Tensor, "B T"], widths: Sequence[float | None]
    ) -> Float[Tensor, " B"]:
        """Return the reward, with a sigmoid for each penalty that has a width."""
        config = self.run.reward
        total = predictions.new_zeros(len(predictions))
        for term in config.terms:
            total = total + term.weight * predictions[:, self._place(term.task)]
        for penalty, width in zip(config.penalties, widths, strict=True):
            value = predictions[:, self._place(penalty.task)]
            beyond = value - penalty.above if penalty.above is not None else penalty.below - value
            total = total - penalty.penalty * (
                (beyond > 0).to(value) if width is None else torch.sigmoid(beyond / width)
            )
        return total

    def _place(self, task: str) -> int:
        """Return a task's column among the outputs; raises UnobservedTaskError if it was not
        trained.
        """
        trained = [each.name for each in self.run.tasks]
        if task in trained:
            return trained.index(task)
        known = [each["name"] for each in self.run.config["tasks"]]
        if task not in known:
            raise ConfigError(
                f"reward reads task '{task}', which is not among the tasks of {self.run.folder}:"
                f" {', '.join(known)}"
            )
        raise UnobservedTaskError(
            f"task '{task}' was not trained in {self.run.folder}: its table had no labels for it,"
            f" and its value is not invented; trained are {', '.join(trained)}. Train on a table"
            " with these labels, or take the task out of reward in the run's config"
        )

    @torch.no_grad()
    def _predictions(
        self, table: Table, keep: pl.LazyFrame | None = None
    ) -> Iterator[tuple[Float[Tensor, "B T"], pl.DataFrame]]:
        """Yield predictions batch by batch, with the same rows of `keep`."""
        run, tables = self.run, self._evaluate.tables(self._vectors(table))
        for inputs, kept in frame_inputs(run, table, BATCH_ROWS, keep):
            yield to_units(self._outputs(tables, inputs), run.tasks, run.scaling), kept

    def _vectors(self, table: Table) -> list[Float[Tensor, "_ _"]]:
        """Return the vectors of a table's distinct strings, one matrix per string column."""
        return [
            vectors_of_all_strings(self.run, column.name, table.strings[column.name].text)
            for column in self.run.data.strings
        ]

    def _outputs(
        self, tables: list[Float[Tensor, "_ D"]], inputs: FrameInputs
    ) -> Float[Tensor, "B T"]:
        """Return the heads' outputs; the inputs move to the device while it still works on the
        batch before.
        """
        device = self.run.device
        given = (
            each.to(device, non_blocking=True)
            for each in (inputs.string_id, self.run.scaling.apply(inputs.numeric), inputs.category)
        )
        return self._evaluate(tables, *given)
