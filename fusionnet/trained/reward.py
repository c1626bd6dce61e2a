"""The trained model as predictor and as reward for reinforcement learning.

The reward is the specification's (section 10):

    reward = sum of weight x prediction (probability, or score, for binary tasks)
             - penalty where a prediction is on the wrong side of its threshold

Terms and penalties are in the run's config. `reward(frame)` is batched and free of gradients;
`rewards(frame)` has the parts beside the sum. A policy's inner loop gives its strings once:

    rewarder = model.on_strings({"polymer": polymers})
    rewarder(RowInputs(string_id, numeric, category)).total  # raw units: kPa, mm, ...

To optimise a design by gradients:

    vectors, inputs = model.inputs(frame)
    inputs.numeric.requires_grad_()  # raw units: kPa, mm, ...
    model.differentiable(vectors, inputs).sum().backward()

A threshold has no gradient; there it is a sigmoid of the penalty's `width`, in the unit of its
task.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.config.table import OnInvalid
from fusionnet.config.reward import Unseen
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import prediction_bar
from fusionnet.rows.tensors import RowInputs, joined
from fusionnet.trained.batches import (
    BATCH_ROWS,
    predicted_batches,
    standardised,
    table_vectors,
)
from fusionnet.trained.blended import Found
from fusionnet.trained.folder import Moment
from fusionnet.trained.formula import formula_of
from fusionnet.trained.frames import frame_blocks, open_frame
from fusionnet.trained.hub import OnHub
from fusionnet.trained.novelty import new_strings_of
from fusionnet.trained.rewarder import Rewarder, rewarder_on
from fusionnet.trained.rewards import (
    Rewards,
    check_pessimism,
    check_unseen,
    flagged,
    joined_rewards,
    rewards_of,
)
from fusionnet.trained.run import Precision, TrainedRun, load_run
from fusionnet.trained.scored import asked_of, scored_batches, scored_names
from fusionnet.trained.sources import is_pandas


class RewardModel(OnHub):
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

    def reward(
        self, frame: Any, pessimism: float | None = None, unseen: Unseen | None = None
    ) -> Float[Tensor, " B"]:
        """Return one reward per row, with hard thresholds, without gradients.

        `pessimism` and `unseen` stand for those of the run's config. Raises UnobservedTaskError if
        the reward reads an untrained task, ConfigError for a pessimism that needs an ensemble,
        TableError for rows that break a rule, whatever the run's config says of them: a policy
        would learn from NaN.
        """
        return joined_rewards([*self._rewarded(frame, pessimism, unseen, False)]).total

    def rewards(
        self, frame: Any, pessimism: float | None = None, unseen: Unseen | None = None
    ) -> Rewards:
        """Return what `reward` does, with the parts of each reward and how far it can be trusted.

        With `unseen` "allow" nobody looks what is known and outside.
        """
        with_flags = check_unseen(self.run, unseen) != "allow"
        return joined_rewards([*self._rewarded(frame, pessimism, unseen, with_flags)])

    def on_strings(
        self,
        texts: Mapping[str, Sequence[str]],
        pessimism: float | None = None,
        unseen: Unseen | None = None,
    ) -> Rewarder:
        """Return a function of rows in raw units, which gives what `rewards` does, only faster.

        `texts` are the strings that rows may have, by the name of their column: they are encoded
        and projected once. Raises what `rewards` does, of strings.
        """
        formula, factor = formula_of(self.run), check_pessimism(self.run, pessimism)
        return rewarder_on(
            self.run, self._evaluate, formula, texts, factor, check_unseen(self.run, unseen)
        )

    def score(
        self,
        frame: Any,
        on_invalid: OnInvalid | None = None,
        pessimism: float | None = None,
        unseen: Unseen | None = None,
    ) -> Any:
        """Return what `predict` does, and the columns of the reward, in one pass.

        `reward`, then what it is the sum of: `reward_<task>` per term, `penalty_<task>` per penalty
        as it is subtracted (with `_<label>` where one is read, and `_2`, `_3` behind a further one
        of the same name), and with pessimism `doubt`, as it is subtracted.
        """
        batches = self.batches(
            frame, reward=True, on_invalid=on_invalid, pessimism=pessimism, unseen=unseen
        )
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
        pessimism: float | None = None,
        unseen: Unseen | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Yield predictions batch by batch in the frame's order, and what is asked for beside them.

        They stand beside the same rows of `keep`. The whole frame is checked before the first
        batch; one without rows has one batch without rows. What the config says of strings that
        training never saw (`unseen`) concerns rewards alone.
        """
        asked = asked_of(self.run, reward, coverage, uncertainty, pessimism)
        policy = check_unseen(self.run, unseen) if reward else "flag"
        table = open_frame(self.run, frame, on_invalid, policy)
        with prediction_bar(table.num_rows, progress) as bar:
            for batch in scored_batches(self.run, self._evaluate, table, asked, keep):
                yield batch
                bar.update(len(batch))

    def columns(
        self,
        reward: bool = False,
        coverage: float | None = None,
        uncertainty: bool = False,
        pessimism: float | None = None,
    ) -> list[str]:
        """Return the columns of `batches` before `known`, in their order."""
        asked = asked_of(self.run, reward, coverage, uncertainty, pessimism)
        return scored_names(self.run, asked)

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
        pessimism: float | None = None,
    ) -> Float[Tensor, " B"]:
        """Return rewards with gradients with respect to `vectors` and `inputs.numeric` (raw units).

        They are always in fp32: bf16 steps would swamp a slope. Of a blend they are the network's
        rewards: trees have no slope. `softness`, in the tasks' units, stands for the `width` of
        every penalty. A penalty with neither keeps its hard threshold, which has no gradient; so do
        those of the members' own rewards, whose spread `pessimism` subtracts; the doubt about new
        strings, which has no slope, is left out.
        """
        formula, factor = formula_of(self.run), check_pessimism(self.run, pessimism)
        # trees have no slope anywhere, and know strings by their text, not by vectors
        run = replace(self.run, blend=None)
        with torch.autocast(run.device.type, enabled=False):
            outputs = run.model.network(vectors, standardised(run, inputs))
        found = Found(outputs, {})
        widths = [each if softness is None else softness for each in formula.widths]
        predictions = found.in_units(run, run.reward.binary)
        return rewards_of(run, formula, found, predictions, factor, widths).total

    def reward_of(self, predictions: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Return the reward of predictions in raw units, with hard thresholds, without pessimism.

        Columns are those of `prediction_columns`; of binary tasks they hold what `reward.binary`
        says.
        """
        nothing = Found(predictions[:, :0], {})
        return rewards_of(self.run, formula_of(self.run), nothing, predictions).total

    def check_reward(self) -> None:
        """Raise ConfigError if the run's config has no reward.

        Raises UnobservedTaskError if it reads a task that was not trained.
        """
        formula_of(self.run)

    def _rewarded(
        self, frame: Any, pessimism: float | None, unseen: Unseen | None, with_flags: bool
    ) -> Iterator[Rewards]:
        """Yield the rewards of a frame, batch by batch."""
        run, formula = self.run, formula_of(self.run)
        factor = check_pessimism(self.run, pessimism)
        table = open_frame(run, frame, "refuse", check_unseen(self.run, unseen))
        texts = {name: strings.text for name, strings in table.strings.items()}
        new = new_strings_of(run, formula, texts) if factor else None
        for found, predictions, block in predicted_batches(
            run, self._evaluate, table, run.reward.binary, with_marks=with_flags
        ):
            variance = None if new is None else new.variance(block.inputs)
            rewards = rewards_of(run, formula, found, predictions, factor, of_strings=variance)
            yield rewards if block.marks is None else flagged(rewards, block.marks)


def _as_given(frame: Any, found: pl.DataFrame) -> Any:
    """Return predictions as a pandas frame with its index if they are of one."""
    if not is_pandas(frame):
        return found
    columns = {name: found[name].to_numpy() for name in found.columns}
    return type(frame)(columns, index=frame.index)
