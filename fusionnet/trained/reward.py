"""The trained model as predictor and as reward for reinforcement learning.

The reward is the specification's (section 10):

    reward = sum of weight x prediction (probability, or score, for binary tasks)
             - penalty where a prediction is on the wrong side of its threshold

Terms and penalties are in the run's config. `reward(frame)` is batched and free of gradients. To
optimise a design by gradients:

    vectors, inputs = model.inputs(frame)
    inputs.numeric.requires_grad_()  # raw units: kPa, mm, ...
    model.differentiable(vectors, inputs).sum().backward()

A threshold has no gradient; there it is a sigmoid of the penalty's `width`, in the unit of its
task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.errors import ConfigError, NonFinitePredictionError, UnobservedTaskError
from embedcache.table.table import Table
from fusionnet.config.reward import BinaryUnit
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import prediction_bar, refuse_non_finite, to_units
from fusionnet.rows.tensors import RowInputs, joined
from fusionnet.trained.folder import Moment
from fusionnet.trained.frames import frame_inputs, open_frame
from fusionnet.trained.run import Precision, TrainedRun, load_run
from fusionnet.trained.vectors import vectors_of_all_strings

BATCH_ROWS = 8192


class _Batch(NamedTuple):
    """Some rows as they leave the network, in their units, and what stands beside them."""

    outputs: Float[Tensor, "B T"]
    predictions: Float[Tensor, "B T"]
    kept: pl.DataFrame


class RewardModel:
    """A frozen run that predicts and rewards rows in raw units.

    Memory does not grow with their number.
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
        """Return predictions in raw units, one column `predicted_<column>` per task.

        Binary tasks have probabilities (`fusionnet.model.probability`). `frame` is a polars or
        pandas frame, or a path, with the columns that the run's config names, in their units.
        Raises TableError with all violations.
        """
        return pl.concat(self.batches(frame))

    def reward(self, frame: Any) -> Float[Tensor, " B"]:
        """Return one reward per row, with hard thresholds, without gradients.

        Raises UnobservedTaskError if the reward reads an untrained task.
        """
        self.check_reward()
        batches = self._batches(open_frame(self.run, frame), self.run.reward.binary)
        return torch.cat([self.reward_of(batch.predictions) for batch in batches])

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
        """Yield predictions batch by batch in the frame's order, and rewards where asked.

        They stand beside the same rows of `keep`. The whole frame is checked before the first
        batch.
        """
        if reward:
            self.check_reward()
        columns = [f"predicted_{task.column}" for task in self.run.tasks]
        table = open_frame(self.run, frame)
        with prediction_bar(table.num_rows, progress) as bar:
            for found in self._batches(table, "probability", keep):
                batch = pl.DataFrame(found.predictions.cpu().numpy(), schema=columns)
                if reward:
                    rewards = self.reward_of(self._as_rewarded(found.outputs)).cpu().numpy()
                    batch = batch.with_columns(reward=rewards)
                yield batch if keep is None else found.kept.hstack(batch)
                bar.update(len(batch))

    def inputs(self, frame: Any) -> tuple[list[Float[Tensor, "_ _"]], RowInputs]:
        """Return a frame's vectors, one matrix per string column, and its rows in raw units.

        All are on the run's device, as `differentiable` takes them.
        """
        table = open_frame(self.run, frame)
        blocks = [inputs for inputs, _ in frame_inputs(self.run, table, BATCH_ROWS)]
        return self._vectors(table), joined(blocks).to(self.run.device)

    def differentiable(
        self,
        vectors: Sequence[Float[Tensor, "_ _"]],
        inputs: RowInputs,
        softness: float | None = None,
    ) -> Float[Tensor, " B"]:
        """Return rewards with gradients with respect to `vectors` and `inputs.numeric` (raw units).

        They are always in fp32: bf16 steps would swamp a slope. `softness`, in the tasks' units,
        stands for the `width` of every penalty. A penalty with neither keeps its hard threshold,
        which has no gradient.
        """
        self.check_reward()
        run = self.run
        with torch.autocast(run.device.type, enabled=False):
            outputs = run.model.network(vectors, _standardised(run, inputs))
        widths = [
            penalty.width if softness is None else softness for penalty in run.reward.penalties
        ]
        return self._total(self._as_rewarded(outputs), widths)

    def reward_of(self, predictions: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Return the reward of predictions in raw units, with hard thresholds.

        Columns are in the order of the run's tasks; those of binary tasks are what `reward.binary`
        says.
        """
        return self._total(predictions, [None] * len(self.run.reward.penalties))

    def check_reward(self) -> None:
        """Raise ConfigError if the run's config has no reward.

        Raises UnobservedTaskError if it reads a task that was not trained.
        """
        reward = self.run.reward
        if not reward.terms:
            raise ConfigError(
                f"{self.run.folder / self.run.name}_config.yaml has no reward.terms, so there is no"
                " reward; see configs/stage1.yaml for an example"
            )
        for task in reward.tasks:
            self._index_of(task)

    def _total(
        self, predictions: Float[Tensor, "B T"], widths: Sequence[float | None]
    ) -> Float[Tensor, " B"]:
        """Return the reward, with a sigmoid for each penalty that has a width."""
        config = self.run.reward
        total = predictions.new_zeros(len(predictions))
        for term in config.terms:
            total = total + term.weight * predictions[:, self._index_of(term.task)]
        for penalty, width in zip(config.penalties, widths, strict=True):
            value = predictions[:, self._index_of(penalty.task)]
            if penalty.above is not None:
                beyond = value - penalty.above
            else:
                assert penalty.below is not None, "the config gives one of the two"
                beyond = penalty.below - value
            paid = (beyond > 0).to(value) if width is None else torch.sigmoid(beyond / width)
            total = total - penalty.penalty * paid
        broken = int((~total.isfinite()).sum())
        if broken:
            raise NonFinitePredictionError(
                f"the rewards of {broken:,} of {len(total):,} rows are NaN or infinite: reward in"
                f" {self.run.folder / self.run.name}_config.yaml multiplies predictions beyond"
                " fp32, or a feature of these rows is far beyond the train rows"
            )
        return total

    def _index_of(self, task: str) -> int:
        """Return a task's index among the outputs; raise UnobservedTaskError if it is untrained."""
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

    def _as_rewarded(self, outputs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return outputs in the units that the reward reads."""
        return to_units(outputs, self.run.tasks, self.run.scaling, self.run.reward.binary)

    @torch.no_grad()
    def _batches(
        self, table: Table, binary_unit: BinaryUnit, keep: pl.LazyFrame | None = None
    ) -> Iterator[_Batch]:
        """Yield predictions batch by batch, with the same rows of `keep`."""
        run, tables = self.run, self._evaluate.tables(self._vectors(table))
        start = 0
        for inputs, kept in frame_inputs(run, table, BATCH_ROWS, keep):
            rows = _standardised(run, inputs)
            # they move to the device while it still works on the batch before
            outputs = self._evaluate(tables, rows.to(run.device, non_blocking=True))
            predictions = to_units(outputs, run.tasks, run.scaling, binary_unit)
            number = torch.arange(start, start + rows.num_rows)
            where, columns = f"rows {start:,} to {start + rows.num_rows - 1:,}", run.scaling.columns
            refuse_non_finite(predictions, run.tasks, rows.numeric, columns, number, where)
            start += rows.num_rows
            yield _Batch(outputs, predictions, kept)

    def _vectors(self, table: Table) -> list[Float[Tensor, "_ _"]]:
        """Return the vectors of a table's distinct strings, one matrix per string column."""
        return [
            vectors_of_all_strings(self.run, column.name, table.strings[column.name].text)
            for column in self.run.data.strings
        ]


def _standardised(run: TrainedRun, inputs: RowInputs) -> RowInputs:
    """Return rows in raw units as the network takes them."""
    return replace(inputs, numeric=run.scaling.apply(inputs.numeric))
