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
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.config.table import OnInvalid
from embedcache.errors import ConfigError, NonFinitePredictionError, UnobservedTaskError
from fusionnet.config.reward import RewardPenalty, RewardTerm
from fusionnet.config.tasks import prediction_columns
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import prediction_bar
from fusionnet.rows.tensors import RowInputs, joined
from fusionnet.trained.batches import (
    BATCH_ROWS,
    Batch,
    added_columns,
    predicted_batches,
    standardised,
    table_vectors,
)
from fusionnet.trained.blended import Found
from fusionnet.trained.folder import Moment
from fusionnet.trained.frames import frame_blocks, is_pandas, open_frame
from fusionnet.trained.named import prediction_frame, prediction_names
from fusionnet.trained.run import Precision, TrainedRun, load_run
from fusionnet.trained.uncertain import (
    bound_names,
    calibration_of,
    check_uncertain,
    level_of,
    uncertainty_names,
)


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

    def predict(
        self,
        frame: Any,
        on_invalid: OnInvalid | None = None,
        coverage: float | None = None,
        uncertainty: bool = False,
    ) -> Any:
        """Return predictions in raw units, and what is to be known of each.

        One column `predicted_<column>` per task (binary tasks have probabilities, see
        `fusionnet.model.probability`; of several classes the class, then the probability of each,
        `probability_<column>_<class>`), then `known`: training saw the row's strings and
        categories; `outside`: a number of it lies outside of the train rows'; `reason`: in words
        why it is not known, is outside, or cannot be used. With `coverage` 0.9, of each number also
        `lower_<column>` and `upper_<column>`, between which nine of ten labels of new units are
        (`calibration` in the config says of what units), and of classes `set_<column>_<class>`,
        whether a class is among those that hold nine of ten. With `uncertainty` also
        `aleatoric_<column>`, the learnt noise of a label (`loss: beta_nll`), and
        `epistemic_<column>`, how far an ensemble's networks are apart (`model.members`; of several
        classes `epistemic_<column>_<class>`): standard deviations, in the column's unit.

        `frame` is a polars or pandas frame, or a path, with the columns that the run's config
        names, in their units; a pandas frame comes back as one, with its index. Raises TableError
        with all violations; with `on_invalid` "skip" (unset: as the run's config says) rows that
        break a rule have null instead. Raises ConfigError for a coverage that is none, or an
        uncertainty that the run has not learnt, RunError where it has no intervals.
        """
        batches = self.batches(
            frame, on_invalid=on_invalid, coverage=coverage, uncertainty=uncertainty
        )
        return _as_given(frame, pl.concat(batches))

    def reward(self, frame: Any) -> Float[Tensor, " B"]:
        """Return one reward per row, with hard thresholds, without gradients.

        Raises UnobservedTaskError if the reward reads an untrained task, TableError for rows that
        break a rule, whatever the run's config says of them: a policy would learn from NaN.
        """
        self.check_reward()
        table = open_frame(self.run, frame, "refuse")
        batches = predicted_batches(self.run, self._evaluate, table, self.run.reward.binary)
        return torch.cat([self.reward_of(batch.predictions) for batch in batches])

    def score(self, frame: Any, on_invalid: OnInvalid | None = None) -> Any:
        """Return what `predict` does and the column `reward`, in one pass."""
        batches = self.batches(frame, reward=True, on_invalid=on_invalid)
        return _as_given(frame, pl.concat(batches))

    def batches(
        self,
        frame: Any,
        reward: bool = False,
        keep: pl.LazyFrame | None = None,
        progress: bool = False,
        on_invalid: OnInvalid | None = None,
        coverage: float | None = None,
        uncertainty: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Yield predictions batch by batch in the frame's order, and what is asked for beside them.

        They stand beside the same rows of `keep`. The whole frame is checked before the first
        batch; one without rows has one batch without rows.
        """
        if reward:
            self.check_reward()
        if uncertainty:
            check_uncertain(self.run)
        level = None
        if coverage is not None:
            level, _ = level_of(coverage), calibration_of(self.run)
        table = open_frame(self.run, frame, on_invalid)
        with prediction_bar(table.num_rows, progress) as bar:
            for found in predicted_batches(
                self.run, self._evaluate, table, "probability", keep, with_marks=True
            ):
                block = found.block
                batch = self._named(found)
                for columns in added_columns(self.run, found, table, level, uncertainty):
                    batch = batch.hstack(columns)
                if reward:
                    rewards = self.reward_of(self._as_rewarded(found.found))
                    on_rows = block.spread(rewards.unsqueeze(1)).squeeze(1).cpu().numpy()
                    batch = batch.with_columns(reward=on_rows)
                if not block.usable.all():
                    batch = batch.fill_nan(None)
                assert block.marks is not None, "they were asked for"
                batch = batch.hstack(block.marks)
                yield batch if keep is None else block.kept.hstack(batch)
                bar.update(len(batch))

    def columns(
        self, reward: bool = False, coverage: float | None = None, uncertainty: bool = False
    ) -> list[str]:
        """Return the columns of `batches` before `known`, in their order."""
        names = prediction_names(self.run.tasks)
        if coverage is not None:
            known = calibration_of(self.run).scores
            own = {task.column for task in self.run.tasks if task.name in known}
            names += [name for kind in bound_names(self.run.tasks, own) for name in kind]
        if uncertainty:
            names += uncertainty_names(self.run)
        return names + ["reward"] * reward

    def inputs(self, frame: Any) -> tuple[list[Float[Tensor, "_ _"]], RowInputs]:
        """Return a frame's vectors, one matrix per string column, and its rows in raw units.

        All are on the run's device, as `differentiable` takes them.
        """
        table = open_frame(self.run, frame, "refuse")
        blocks = [block.inputs for block in frame_blocks(self.run, table, BATCH_ROWS)]
        return table_vectors(self.run, table), joined(blocks).to(self.run.device)

    def differentiable(
        self,
        vectors: Sequence[Float[Tensor, "_ _"]],
        inputs: RowInputs,
        softness: float | None = None,
    ) -> Float[Tensor, " B"]:
        """Return rewards with gradients with respect to `vectors` and `inputs.numeric` (raw units).

        They are always in fp32: bf16 steps would swamp a slope. Of a blend they are the network's
        rewards: trees have no slope. `softness`, in the tasks' units,
        stands for the `width` of every penalty. A penalty with neither keeps its hard threshold,
        which has no gradient.
        """
        self.check_reward()
        run = self.run
        with torch.autocast(run.device.type, enabled=False):
            outputs = run.model.network(vectors, standardised(run, inputs))
        widths = [
            penalty.width if softness is None else softness for penalty in run.reward.penalties
        ]
        # trees have no slope anywhere, and know strings by their text, not by vectors
        rewarded = Found(outputs, {}).in_units(replace(run, blend=None), run.reward.binary)
        return self._total(rewarded, widths)

    def reward_of(self, predictions: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Return the reward of predictions in raw units, with hard thresholds.

        Columns are those of `prediction_columns`; of binary tasks they hold what `reward.binary`
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
        nothing = torch.zeros(0, sum(task.num_classes for task in self.run.tasks))
        for term in reward.terms:
            self._value_of(term, nothing)
        for penalty in reward.penalties:
            self._value_of(penalty, nothing)

    def _total(
        self, predictions: Float[Tensor, "B P"], widths: Sequence[float | None]
    ) -> Float[Tensor, " B"]:
        """Return the reward, with a sigmoid for each penalty that has a width."""
        config = self.run.reward
        total = predictions.new_zeros(len(predictions))
        for term in config.terms:
            total = total + term.weight * self._value_of(term, predictions)
        for penalty, width in zip(config.penalties, widths, strict=True):
            value = self._value_of(penalty, predictions)
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

    def _named(self, found: Batch) -> pl.DataFrame:
        """Return the predictions of all rows of a batch, with their names."""
        run, spread = self.run, found.block.spread
        predictions = scores = spread(found.predictions)
        if any(task.has_codes for task in run.tasks):
            scores = spread(found.found.in_units(run, "score"))
        return prediction_frame(run.tasks, predictions.cpu().numpy(), scores.cpu().numpy())

    def _value_of(
        self, read: RewardTerm | RewardPenalty, predictions: Float[Tensor, "B P"]
    ) -> Float[Tensor, " B"]:
        """Return what a term or penalty reads of the predictions."""
        number = self._index_of(read.task)
        task = self.run.tasks[number]
        chances = predictions[:, prediction_columns(self.run.tasks)[number]]
        if read.label is not None and read.label not in (task.classes or ()):
            raise ConfigError(
                f"reward reads the chance of class '{read.label:.80}' of task '{task.name}', whose"
                f" classes are {', '.join(task.classes or ('none',)):.400}"
            )
        if task.kind == "multiclass" and read.label is None:
            raise ConfigError(
                f"reward reads task '{task.name}', which has several classes: say in `label` which"
                f" one's chance is meant: {', '.join(task.classes or ()):.400}"
            )
        if not task.has_codes:
            return chances[:, 0]
        if read.label is None:
            return chances @ torch.arange(chances.shape[1]).to(chances)
        return chances[:, (task.classes or ()).index(read.label)]

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

    def _as_rewarded(self, found: Found) -> Float[Tensor, "B P"]:
        """Return predictions in the units that the reward reads."""
        return found.in_units(self.run, self.run.reward.binary)


def _as_given(frame: Any, found: pl.DataFrame) -> Any:
    """Return predictions as a pandas frame with its index if they are of one."""
    if not is_pandas(frame):
        return found
    columns = {name: found[name].to_numpy() for name in found.columns}
    return type(frame)(columns, index=frame.index)
